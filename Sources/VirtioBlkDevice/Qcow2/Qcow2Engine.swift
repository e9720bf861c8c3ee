/// The engine of qcow2 images: what the page cache has is read in the queue's own thread, at once and without a copy besides; what would
/// have to be waited for, tables and compressed clusters among it, is read by a few helpers, and so is whatever is written.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct Qcow2Engine: BlockEngine, ~Copyable {
  static let movesData = true
  /// What is read is missed, and what is written goes to clusters that the image has.
  static let noticesCuts = true
  /// A discard is told apart from zeroes: it takes no space.
  var takesDiscards: Bool { true }
  private static let threads = (reading: 8, writing: 16)

  private let disk: Qcow2Disk
  /// Everything is done in place, however long that takes.
  private let mayWait: Bool
  /// Made when it is needed first.
  private var pool: CallPool<Qcow2Disk>?
  private var waiter: BoardWaiter
  private var calls: UInt64 = 0

  /// - Parameter kind: `sync` does everything in place.
  init(_ disk: Qcow2Disk, _ kind: EngineKind, mailbox: Int32) throws(Errno) {
    waiter = try BoardWaiter(mailbox: mailbox)
    self.disk = disk
    mayWait = kind == .sync || disk.isInMemory
  }

  deinit { pool?.end() }

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    calls &+= 1
    if let result = disk.performAtOnce(operation, mayWait: mayWait) { return .finished(result) }
    if pool == nil {
      pool = try? CallPool(disk, board: waiter.board, threads: disk.writer == nil ? Self.threads.reading : Self.threads.writing)
    }
    // Without a single thread it is done here.
    guard let pool else { return .finished(disk.perform(operation)) }
    pool.add(operation, tag: tag)
    return .pending
  }

  mutating func submit() {}
  mutating func wait(nanoseconds: Int64?) { waiter.wait(nanoseconds: nanoseconds) }
  mutating func poll() { waiter.poll() }
  mutating func nextEvent() -> EngineEvent? { waiter.nextEvent() }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { calls &+ (pool?.calls ?? 0) &+ waiter.systemCalls }
}
