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

  /// Used for windows that are not known yet.
  private let windows: PopulatedWindows
  private var image: MappedTransfers
  private var copies: CopyQueue<MappedTransfers>
  private var ring: UringEngine
  private var reclaimed = ReclaimedPages()
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
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    if operation.kind == .read, !image.isCut, image.isData(operation) || comesToBeData(operation) {
      copies.add(operation, (), tag: tag, image)
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
    if reclaimed.areNoticed(copies: copies.added) { windows.forgetAll() }
    return ring.nextEvent()
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
  var systemCalls: UInt64 { ring.systemCalls &+ image.calls &+ looks &+ reclaimed.calls }
}
