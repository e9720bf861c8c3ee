/// The engine that executes every operation in place, on the queue's own thread: the best choice for a medium that never
/// blocks.
internal import SystemPackage
internal import VirtioCore

struct SyncEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let stepBytes = MediumFacts.leastStepBytes

  private let medium: PlainIO
  private var waiter: EpollWaiter
  private var calls: UInt64 = 0

  init(descriptor: Int32, mailbox: Int32, seat: WorkerSeat? = nil) throws(Errno) {
    waiter = try EpollWaiter(mailbox: mailbox, seat: seat)
    medium = PlainIO(descriptor: descriptor)
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    calls &+= 1
    return .finished(medium.perform(operation))
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
  var systemCalls: UInt64 { calls &+ waiter.systemCalls }
}
