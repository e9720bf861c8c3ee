/// The engine for images mapped into the process: a transfer is a copy. For images in memory (tmpfs, hugetlbfs, DAX), where
/// nothing is faster; on a disk each page fault would block the queue.
internal import SystemPackage
internal import VirtioCore

struct MappedEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  static let copies = true
  static let noticesCuts = true
  static let stepBytes = MediumFacts.leastStepBytes

  private var image: MappedTransfers
  private var copies: CopyQueue<MappedTransfers>
  private var waiter: EpollWaiter

  /// - Parameters:
  ///   - descriptor: the image.
  ///   - seat: that of a worker that shares its thread.
  init(
    _ image: MappedImage, descriptor: Int32, mailbox: Int32, seat: WorkerSeat? = nil
  ) throws(Errno) {
    let waiter = try EpollWaiter(mailbox: mailbox, seat: seat)
    copies = CopyQueue()
    self.waiter = waiter
    self.image = MappedTransfers(image, descriptor: descriptor)
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    guard operation.kind.isTransfer else { return .finished(image.performOtherwise(operation)) }
    copies.add(operation, (), tag: tag, image)
    return .pending
  }

  /// Whether there is a completion that needs no sleep.
  var hasFinished: Bool {
    @inline(__always) get { !copies.isEmpty }
  }

  mutating func nextEvent() -> EngineEvent? {
    if let done = copies.nextCompletion(&image) { return done }
    return switch waiter.nextWake() {
    case nil, .completions: nil
    case .kick(let lane): .kick(lane: lane)
    case .mailbox: .mailbox
    }
  }

  mutating func submit() {}

  mutating func wait(nanoseconds: Int64?) {
    guard copies.isEmpty else { return }
    waiter.wait(nanoseconds: nanoseconds)
  }

  mutating func poll() { waiter.wait(nanoseconds: 0) }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  mutating func move(alone: Bool) throws(Errno) { try alone ? waiter.leaveCompany() : waiter.joinCompany() }
  var systemCalls: UInt64 { image.calls &+ waiter.systemCalls }
}
