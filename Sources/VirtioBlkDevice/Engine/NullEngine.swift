/// An engine without a medium: everything succeeds at once, and nothing is read, written or stored. What remains is the cost of
/// the ring and the parser, which this engine is for. A driver gets its buffers back unchanged.
internal import SystemPackage
internal import VirtioCore

struct NullEngine: BlockEngine, ~Copyable {
  static let movesData = false

  private var waiter: EpollWaiter

  init(mailbox: Int32, seat: WorkerSeat? = nil) throws(Errno) {
    waiter = try EpollWaiter(mailbox: mailbox, seat: seat)
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    .finished(Int32(truncatingIfNeeded: operation.length))
  }

  mutating func submit() {}
  mutating func poll() { waiter.wait(nanoseconds: 0) }
  mutating func wait(nanoseconds: Int64?) { waiter.wait(nanoseconds: nanoseconds) }

  mutating func nextEvent() -> EngineEvent? {
    switch waiter.nextWake() {
    case nil, .completions: nil
    case .kick(let lane): .kick(lane: lane)
    case .mailbox: .mailbox
    }
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  mutating func move(alone: Bool) throws(Errno) { try alone ? waiter.leaveCompany() : waiter.joinCompany() }
  var systemCalls: UInt64 { waiter.systemCalls }
}
