/// The engine for qcow2 images. Data in memory is copied by the queue's own thread: nearly all of an image in memory, otherwise
/// what is read from the page cache. With images on a medium, whatever might block (uncached data, tables, compressed clusters)
/// is read by a few helper threads, which also do all writes.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct Qcow2Engine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  static let copies = true
  /// Reads report a truncated file by themselves, and writes go to clusters of the image.
  static let noticesCuts = true
  /// Discards are separate from zeroing: they must not allocate space.
  var takesDiscards: Bool { true }
  /// Operations that wait for the medium benefit from each thread, and a sync is shared by all that wait for one. Operations
  /// that only store into the page cache do not: a file system admits one writer at a time to a file, and more threads would
  /// only contend for it.
  private static let threads = (reading: 8, waiting: 16, storing: 2)
  /// How many transfers are looked up together: about as many cache lines as a core requests at once.
  private static var lookupsAtOnce: Int { 16 }

  private let disk: Qcow2Disk
  /// Everything is done on the queue's thread, however long it takes.
  private let mayWait: Bool
  /// Data in memory is copied, without a system call.
  private let isCopying: Bool
  private var image: Qcow2Copies
  private var copies = CopyQueue<Qcow2Copies>()
  /// How many of the queue's transfers have been looked up, and are copies or done.
  ///
  /// The entry of a large table, and what is known about a place in a large file, are rarely in the CPU's caches. So a transfer
  /// is not looked up when it is started, but together with those after it: meanwhile its entry is prefetched.
  private var placed = 0
  /// In the page cache, pages may be reclaimed.
  private var reclaimed: ReclaimedPages?
  /// Each is made on first use.
  private var pool: CallPool<Qcow2Disk>?
  private var storing: CallPool<Qcow2Disk>?
  private var waiter: BoardWaiter
  /// Operations that the threads have.
  private var awaited = 0
  private var calls: UInt64 = 0

  /// - Parameter kind: `sync` and `mapped` do everything in the queue's thread.
  init(_ disk: Qcow2Disk, _ kind: EngineKind, mailbox: Int32) throws(Errno) {
    waiter = try BoardWaiter(mailbox: mailbox)
    self.disk = disk
    isCopying = kind == .mapped || kind == .cached
    image = Qcow2Copies(disk)
    reclaimed = kind == .cached ? ReclaimedPages() : nil
    mayWait = kind == .mapped || kind == .sync || disk.isInMemory
  }

  deinit {
    pool?.end()
    storing?.end()
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    guard isCopying, operation.kind.isTransfer else { return startOther(operation, tag: tag) }
    if copies.added &- placed >= Self.lookupsAtOnce { lookUp() }
    copies.add(operation, unknown: image.fetch(operation.offset), tag: tag)
    return .pending
  }

  /// Finds out which transfers are copies, and does all others.
  private mutating func lookUp() {
    let (first, end) = (placed, copies.added)
    for number in first..<end {
      let transfer = unsafe copies[number]
      guard case .unknown(let entry) = unsafe transfer.pointee.place else { continue }
      unsafe transfer.pointee.place = image.find(
        transfer.pointee.operation.kind, isDurable: transfer.pointee.operation.isDurable, transfer.pointee.operation.offset,
        transfer.pointee.operation.length, entry: entry)
    }
    let isWhole = image.isWhole()
    for number in first..<end {
      let transfer = unsafe copies[number]
      if unsafe !isWhole || !image.canCopy(transfer.pointee.place, transfer.pointee.operation.length) {
        guard case .finished(let result) = unsafe performOrHandOver(transfer.pointee) else { continue }
        unsafe transfer.pointee.place = .done(result)
      }
      // Those after one that was handed over move up.
      if number != placed { unsafe copies[placed].pointee = transfer.pointee }
      placed &+= 1
    }
    copies.remove(from: placed)
  }

  @inline(never)
  private mutating func performOrHandOver(_ transfer: Qcow2Copies.Transfer) -> IOOutcome {
    guard let isRead = image.reads(transfer.operation, transfer.place, mayWait: mayWait) else {
      return startOther(transfer.operation, tag: transfer.tag)
    }
    if isRead { return .finished(Int32(truncatingIfNeeded: transfer.operation.length)) }
    // What is not in the page cache is read by a thread, and an error is found again.
    return mayWait ? startOther(transfer.operation, tag: transfer.tag) : handOver(transfer.operation, tag: transfer.tag)
  }

  @inline(never)
  private mutating func startOther(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    calls &+= 1
    if let result = disk.performAtOnce(operation, mayWait: mayWait) { return .finished(result) }
    return handOver(operation, tag: tag)
  }

  private mutating func handOver(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    let pool = disk.onlyStores(operation) ? storingPool() : waitingPool()
    // If no thread can be made, the operation is executed here.
    guard let pool else { return .finished(disk.perform(operation)) }
    pool.add(operation, tag: tag)
    awaited &+= 1
    return .pending
  }

  private mutating func waitingPool() -> CallPool<Qcow2Disk>? {
    if pool == nil {
      pool = try? CallPool(disk, board: waiter.board, threads: disk.writer == nil ? Self.threads.reading : Self.threads.waiting)
    }
    return pool
  }

  private mutating func storingPool() -> CallPool<Qcow2Disk>? {
    if storing == nil { storing = try? CallPool(disk, board: waiter.board, threads: Self.threads.storing) }
    return storing
  }

  /// Whether there is a completion that needs no sleep.
  var hasFinished: Bool {
    @inline(__always) get { !copies.isEmpty }
  }

  mutating func nextEvent() -> EngineEvent? {
    submit()
    if let done = copies.nextCompletion(&image) { return done }
    if reclaimed?.areNoticed(copies: copies.added) ?? false { disk.forgetPages() }
    guard awaited > 0 else { return waiter.nextKick() }
    let event = waiter.nextEvent()
    if case .completion = event { awaited &-= 1 }
    return event
  }

  mutating func submit() { if placed != copies.added { lookUp() } }

  mutating func wait(nanoseconds: Int64?) {
    submit()
    if copies.isEmpty { waiter.wait(nanoseconds: nanoseconds) }
  }

  mutating func poll() { waiter.poll() }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 {
    calls &+ (pool?.calls ?? 0) &+ (storing?.calls ?? 0) &+ (reclaimed?.calls ?? 0) &+ image.calls &+ waiter.systemCalls
  }
}
