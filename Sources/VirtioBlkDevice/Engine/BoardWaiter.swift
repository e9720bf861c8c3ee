/// Waits for completions from other threads, for kicks and for the mailbox at once: for engines whose operations are executed
/// by other threads.
internal import SystemPackage
internal import VirtioCore

@safe
struct BoardWaiter: ~Copyable {
  /// Where those threads post results.
  let board: CompletionBoard
  private let counter: OwnedDescriptor
  private var waiter: EpollWaiter
  /// Taken from the board, and not reported yet.
  private var finished: [(tag: UInt32, result: Int32)] = []

  init(mailbox: Int32) throws(Errno) {
    let counter = try OwnedDescriptor.eventCounter()
    waiter = try EpollWaiter(mailbox: mailbox, completions: counter.rawValue)
    board = CompletionBoard { EventCounter.signal(counter.rawValue) }
    self.counter = counter
  }

  deinit { board.awaitPosters() }

  mutating func wait(nanoseconds: Int64?) { if finished.isEmpty { waiter.wait(nanoseconds: nanoseconds) } }
  mutating func poll() { waiter.wait(nanoseconds: 0) }

  mutating func nextEvent() -> EngineEvent? {
    if finished.isEmpty { board.take(into: &finished) }
    if let done = finished.popLast() { return .completion(tag: done.tag, result: done.result) }
    return nextKick()
  }

  /// The same if no results are due, without asking for them.
  mutating func nextKick() -> EngineEvent? {
    while let wake = waiter.nextWake() {
      switch wake {
      case .completions: continue
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox: return .mailbox
      }
    }
    return nil
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { waiter.systemCalls }
}
