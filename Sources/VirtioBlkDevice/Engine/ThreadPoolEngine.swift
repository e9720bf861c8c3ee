/// Plain system calls on a few threads, as in event loops before io_uring: for comparison.
internal import SystemPackage
internal import VirtioCore

@safe
struct ThreadPoolEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  private static let threadCount = 16

  private let pool: CallPool<PlainIO>
  private var waiter: BoardWaiter

  init(descriptor: Int32, mailbox: Int32) throws(Errno) {
    let waiter = try BoardWaiter(mailbox: mailbox)
    pool = try CallPool(PlainIO(descriptor: descriptor), board: waiter.board, threads: Self.threadCount)
    self.waiter = waiter
  }

  deinit { pool.end() }

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    pool.add(operation, tag: tag)
    return .pending
  }

  mutating func submit() {}
  mutating func wait(nanoseconds: Int64?) { waiter.wait(nanoseconds: nanoseconds) }
  mutating func poll() { waiter.poll() }
  mutating func nextEvent() -> EngineEvent? { waiter.nextEvent() }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { pool.calls &+ waiter.systemCalls }
}
