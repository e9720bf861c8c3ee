/// The engine for images in the page cache: cached data is copied out of a mapping, which costs a third of a system call;
/// io_uring does everything else.
///
/// Touching a page that is not resident blocks the queue until the medium has delivered it. So data is copied only from windows
/// whose pages were all resident when they were checked. The kernel may reclaim pages at any time; once the thread had to wait
/// for one, everything known is forgotten.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

struct CachedEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  static let copies = true
  static let stepBytes = MediumFacts.leastStepBytes
  /// How long reclaimed pages may go unnoticed, each of which may block the queue once: nanoseconds, and copies between
  /// readings of the clock.
  private static let patience = (time: UInt64(1_000_000), copies: 16)

  /// Used for windows that are not known yet.
  private let windows: PopulatedWindows
  private var image: MappedTransfers
  private var copies: CopyQueue
  private var ring: UringEngine
  /// The number of major page faults of this thread when they were last counted, and the time.
  private var seen: (faults: UInt64, time: UInt64)
  /// Copies that had been added then, or when the clock was last read.
  private var seenCopies = 0
  private var looks: UInt64 = 0

  /// - Parameters:
  ///   - image: the mapping, which has windows.
  ///   - descriptor: the image.
  ///   - depth: operations that can be in flight at once.
  init(_ image: MappedImage, descriptor: Int32, mailbox: Int32, depth: Int, setup: UringSetup) throws(Errno) {
    guard let windows = image.windows else { throw .noMemory }
    let ring = try UringEngine(descriptor: descriptor, isSlow: false, mailbox: mailbox, depth: depth, setup: setup)
    self.windows = windows
    copies = CopyQueue()
    self.ring = ring
    self.image = MappedTransfers(image, descriptor: descriptor)
    seen = (clinux_thread_major_faults(), Clock.now)
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    if operation.kind == .read, !image.isCut, image.isData(operation) || comesToBeData(operation) {
      copies.add(operation, tag: tag, image)
      return .pending
    }
    return startOther(operation, tag: tag)
  }

  @inline(never)
  private mutating func startOther(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    // A check before it is done may still find the old contents: a hole that is touched in the page cache also reads as zeroes.
    image.forgetHoles(of: operation)
    return ring.start(operation, tag: tag)
  }

  /// Whether a read of windows that are not known, or are known to lack pages, can be a copy after all.
  @inline(never)
  private mutating func comesToBeData(_ operation: IOOperation) -> Bool {
    switch windows.look(operation.offset, operation.length) {
    case .data:
      looks &+= 1
      return true
    case .sparse:
      // The read that follows brings the pages in.
      windows.filled(operation.offset, operation.length)
      return false
    case .cut: return false
    }
  }

  var hasFinished: Bool {
    @inline(__always) get { !copies.isEmpty }
  }

  mutating func nextEvent() -> EngineEvent? {
    if let done = copies.nextCompletion(&image) { return done }
    if copies.added &- seenCopies >= Self.patience.copies { noticeLostPages() }
    return ring.nextEvent()
  }

  /// Checks once in a while, between copies, whether some of them had to wait for the medium.
  @inline(never)
  private mutating func noticeLostPages() {
    seenCopies = copies.added
    let now = Clock.now
    guard now &- seen.time > Self.patience.time else { return }
    looks &+= 1
    let faults = clinux_thread_major_faults()
    if faults != seen.faults { windows.forgetAll() }
    seen = (faults, now)
  }

  mutating func submit() { ring.submit() }

  mutating func wait(nanoseconds: Int64?) {
    guard copies.isEmpty else { return ring.submit() }
    ring.wait(nanoseconds: nanoseconds)
  }

  mutating func abandon() { copies.abandon() }
  mutating func poll() { ring.poll() }
  mutating func use(_ memory: GuestMemory) { ring.use(memory) }
  var takesOnlyTransfers: Bool { ring.takesOnlyTransfers }
  var isLost: Bool { ring.isLost }
  var awaitsThreads: Bool { ring.awaitsThreads }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try ring.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { ring.unwatch(lane: lane) }
  var systemCalls: UInt64 { ring.systemCalls &+ image.calls &+ looks }
}
