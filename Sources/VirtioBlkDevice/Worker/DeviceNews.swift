/// What workers have to tell the control plane, until it asks.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// What a worker says to an order to prepare.
struct Preparation: Sendable {
  var worker: Int
  /// The order's.
  var number: UInt64
  /// `nil`: it is ready.
  var error: QueueError?
}

/// Everything that was reported since the last request, oldest first.
struct News: Sendable {
  var events: [DeviceEvent] = []
  var preparations: [Preparation] = []
  /// Workers that are paused and have nothing in flight, with the number of the pause.
  var rests: [Int: UInt64] = [:]
  /// Workers that write no trace any more, with the number of the trace.
  var traceStops: [Int: UInt64] = [:]
  /// Their threads do nothing more.
  var endedWorkers: [Int] = []
  /// Bytes that the image has now, where somebody elsewhere has resized it.
  var imageSize: UInt64?
}

/// A locked list and an eventfd. It cannot grow: a queue tells each thing once before it is started again, or only its last one
/// counts, and what can be said more often is kept a few times and then counted.
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
        // It waits for one thing at a time.
        state.news.events.removeAll { if case .translationMissed(queue, _) = $0 { true } else { false } }
      default: break
      }
      state.news.events.append(event)
    }
    EventCounter.signal(counter.rawValue)
  }

  /// The last word of a worker: its thread does nothing more.
  func workerEnded(_ index: Int) {
    state.withLock { $0.news.endedWorkers.append(index) }
    EventCounter.signal(counter.rawValue)
  }

  /// Somebody elsewhere has resized the image; the last word counts.
  func resized(to size: UInt64) {
    state.withLock { $0.news.imageSize = size }
    EventCounter.signal(counter.rawValue)
  }

  /// A paused worker has nothing in flight.
  func rests(worker: Int, pause: UInt64) {
    state.withLock { $0.news.rests[worker] = pause }
    EventCounter.signal(counter.rawValue)
  }

  /// A worker was told to write no trace any more, and does not.
  func stoppedTrace(worker: Int, number: UInt64) {
    state.withLock { $0.news.traceStops[worker] = number }
    EventCounter.signal(counter.rawValue)
  }

  func post(_ preparation: Preparation) {
    state.withLock { $0.news.preparations.append(preparation) }
    EventCounter.signal(counter.rawValue)
  }

  /// An answer to `prepare` that nobody has taken yet is not wanted any more.
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
