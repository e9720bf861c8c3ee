/// What workers report to the control plane, stored until it asks.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// A worker's answer to an order to prepare.
struct Preparation: Sendable {
  var worker: Int
  /// The number of the order.
  var number: UInt64
  /// `nil`: it is ready.
  var error: QueueError?
}

/// Everything that was reported since it was last taken, oldest first.
struct News: Sendable {
  var events: [DeviceEvent] = []
  var preparations: [Preparation] = []
  /// Workers that are paused and have nothing in flight, with the number of the pause.
  var rests: [Int: UInt64] = [:]
  /// Workers that have stopped recording a trace, with the number of the trace.
  var traceStops: [Int: UInt64] = [:]
  /// Workers whose threads have ended.
  var endedWorkers: [Int] = []
  /// The image's new size in bytes, if it was resized from outside.
  var imageSize: UInt64?
}

/// A list under a lock, and an eventfd. The list is bounded: a queue reports each event once before it is started again, or
/// only the last one counts; of notices, which may be more frequent, a few are kept and the rest are counted.
final class DeviceNews: Sendable {
  private static let noticeLimit = 8

  private struct State {
    var news = News()
    var notices = 0
    var heldBack = 0
  }

  private let state = Mutex(State())
  private let counter: OwnedDescriptor

  init() throws(Errno) { counter = try OwnedDescriptor.eventCounter() }

  /// Readable while there is news.
  var descriptor: Int32 { counter.rawValue }

  func post(_ event: DeviceEvent) {
    state.withLock { state in
      switch event {
      case .configurationChanged where state.news.events.contains(.configurationChanged): return
      case .notice:
        guard state.notices < Self.noticeLimit else {
          state.heldBack += 1
          return
        }
        state.notices += 1
      case .translationMissed(let queue, _):
        // A queue waits for one translation at a time.
        state.news.events.removeAll { if case .translationMissed(queue, _) = $0 { true } else { false } }
      default: break
      }
      state.news.events.append(event)
    }
    EventCounter.signal(counter.rawValue)
  }

  /// A worker's last report: its thread ends.
  func workerEnded(_ index: Int) {
    state.withLock { $0.news.endedWorkers.append(index) }
    EventCounter.signal(counter.rawValue)
  }

  /// The image was resized from outside; the last report counts.
  func resized(to size: UInt64) {
    state.withLock { $0.news.imageSize = size }
    EventCounter.signal(counter.rawValue)
  }

  /// A paused worker has nothing in flight.
  func rests(worker: Int, pause: UInt64) {
    state.withLock { $0.news.rests[worker] = pause }
    EventCounter.signal(counter.rawValue)
  }

  /// A worker that was told to stop recording a trace has stopped.
  func stoppedTrace(worker: Int, number: UInt64) {
    state.withLock { $0.news.traceStops[worker] = number }
    EventCounter.signal(counter.rawValue)
  }

  func post(_ preparation: Preparation) {
    state.withLock { $0.news.preparations.append(preparation) }
    EventCounter.signal(counter.rawValue)
  }

  /// Drops an answer to `prepare` that was not taken and is no longer wanted.
  func dropPreparations() {
    state.withLock { state in
      state.news.events.removeAll(where: \.isPreparation)
      state.news.preparations = []
    }
  }

  /// Everything since the last call, oldest first.
  func take() -> News {
    EventCounter.drain(counter.rawValue)
    return state.withLock { state in
      defer { state = State() }
      var news = state.news
      if state.heldBack > 0 { news.events.append(.notice("\(state.heldBack) more notices were left out")) }
      return news
    }
  }
}
