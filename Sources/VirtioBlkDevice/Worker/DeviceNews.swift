/// What workers have to tell the control plane, until it asks.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// A locked list and an eventfd. It cannot grow: a queue tells each thing once before it is started anew, and what can be
/// said more often is kept a few times and then counted.
final class DeviceNews: Sendable {
  private static let noticeLimit = 8

  private struct State {
    var events: [DeviceEvent] = []
    var notices = 0
    var heldBack = 0
    var endedWorkers: [Int] = []
  }

  private let state = Mutex(State())
  private let counter: OwnedDescriptor

  init() throws(Errno) { counter = try OwnedDescriptor.eventCounter() }

  /// Readable while there is news.
  var descriptor: Int32 { counter.rawValue }

  func post(_ event: DeviceEvent) {
    state.withLock { state in
      switch event {
      case .configurationChanged where state.events.contains(.configurationChanged): return
      case .notice:
        guard state.notices < Self.noticeLimit else {
          state.heldBack += 1
          return
        }
        state.notices += 1
      default: break
      }
      state.events.append(event)
    }
    EventCounter.signal(counter.rawValue)
  }

  /// The last word of a worker: its thread does nothing more.
  func workerEnded(_ index: Int) {
    state.withLock { $0.endedWorkers.append(index) }
    EventCounter.signal(counter.rawValue)
  }

  /// Everything since the last call, oldest first.
  func take() -> (events: [DeviceEvent], endedWorkers: [Int]) {
    EventCounter.drain(counter.rawValue)
    return state.withLock { state in
      defer { state = State() }
      let more = state.heldBack == 0 ? [] : [DeviceEvent.notice("\(state.heldBack) more notices were left out")]
      return (state.events + more, state.endedWorkers)
    }
  }
}
