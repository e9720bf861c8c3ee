/// Plain system calls on a few threads, as event loops did before there was io_uring: to be measured against.
internal import SystemPackage
internal import VirtioCore

@safe
struct ThreadPoolEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  private static let threadCount = 16

  private let counter: OwnedDescriptor
  private let board: CompletionBoard
  private let pool: CallPool<PlainIO>
  private var waiter: EpollWaiter
  private var finished: [(tag: UInt32, result: Int32)]

  init(descriptor: Int32, mailbox: Int32) throws(Errno) {
    let counter = try OwnedDescriptor.eventCounter()
    let board = CompletionBoard { EventCounter.signal(counter.rawValue) }
    let waiter = try EpollWaiter(mailbox: mailbox, completions: counter.rawValue)
    pool = try CallPool(PlainIO(descriptor: descriptor), board: board, threads: Self.threadCount)
    self.counter = counter
    self.board = board
    self.waiter = waiter
    finished = []
  }

  deinit { pool.end() }

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    pool.add(operation, tag: tag)
    return .pending
  }

  mutating func submit() {}
  mutating func wait(nanoseconds: Int64?) { if finished.isEmpty { waiter.wait(nanoseconds: nanoseconds) } }
  mutating func poll() { waiter.wait(nanoseconds: 0) }

  mutating func nextEvent() -> EngineEvent? {
    if finished.isEmpty { board.take(into: &finished) }
    if let done = finished.popLast() { return .completion(tag: done.tag, result: done.result) }
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
  var systemCalls: UInt64 { pool.calls &+ waiter.systemCalls }
}
