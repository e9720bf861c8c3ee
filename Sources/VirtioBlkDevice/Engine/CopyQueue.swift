/// A queue of transfers that are copies.
///
/// A copy between memories that are not cached mostly waits for cache lines. So a transfer is not copied when it is started but
/// when the worker asks for events: by then others are known. Small reads are copied four at a time; for the others, the first
/// lines of the next one are prefetched in the meantime.
internal import CLinux
internal import VirtioCore

/// What transfers are copied from and to.
protocol CopyMedium: ~Copyable {
  /// What was found out about a transfer's data when the transfer was added.
  associatedtype Place
  /// Nothing may be copied any more.
  var isCut: Bool { get }
  /// Whether everything that a transfer touches is still data.
  func isData(_ operation: IOOperation, _ place: Place) -> Bool
  /// Where its data is.
  func address(of operation: IOOperation, _ place: Place) -> UnsafeMutableRawPointer
  /// Executes it. - Returns: bytes, or a negative errno.
  mutating func perform(_ operation: IOOperation, _ place: Place) -> Int32
  /// The result of a transfer that was copied.
  mutating func result(of operation: IOOperation) -> Int32
}

@safe
struct CopyQueue<Image: CopyMedium & ~Copyable>: ~Copyable {
  /// How many are copied before the first of them is reported, so that one fence serves all: half of those queued, within these
  /// bounds. The driver refills the ring while the other half is copied.
  private static var copiesAtOnce: (least: Int, most: Int) { (8, 64) }
  /// After this many bytes no further copy is begun.
  private static var bytesAtOnce: UInt64 { MediumFacts.leastStepBytes }
  /// The largest read that is copied together with others, bytes. A longer one keeps the CPU's own prefetcher busy by itself.
  private static var sharedBytes: UInt64 { 16384 }

  /// The initial capacity, transfers: most queues never have more in flight, and a queue only uses the memory that it needs.
  private static var leastRoom: Int { 16 }

  /// A transfer that was started, and its result. It should fit into a cache line.
  struct Transfer {
    var operation: IOOperation
    var place: Image.Place
    var tag: UInt32
    var result: Int32 = 0
  }

  /// A ring of transfers: from `first` on they are copied and not yet reported, from `next` on not copied yet.
  private var transfers: UnsafeMutablePointer<Transfer>
  private var mask = Self.leastRoom - 1
  private var first = 0
  private var next = 0
  private var end = 0
  /// Copies were reported since the last check for other events: before more are made, the virtqueue is checked again, so that
  /// later transfers are known.
  private var hasReported = false

  init() { unsafe transfers = Self.allocate(Self.leastRoom) }

  /// At the beginning of a cache line.
  private static func allocate(_ capacity: Int) -> UnsafeMutablePointer<Transfer> {
    let bytes = capacity * MemoryLayout<Transfer>.stride
    let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
    return unsafe memory.bindMemory(to: Transfer.self, capacity: capacity)
  }

  deinit { unsafe transfers.deallocate() }

  /// Adds a copy to be made. - Parameter image: what it is copied from or to.
  @inline(__always)
  mutating func add(_ operation: IOOperation, _ place: Image.Place, tag: UInt32, _ image: borrowing Image) {
    // The prefetch for the first of a batch overlaps only with bookkeeping.
    if next == end { fetch(operation, place, image) }
    add(operation, unknown: place, tag: tag)
  }

  /// Adds a copy whose data is not known yet. Before the next completion is asked for, its place has to be stored, or it has to be
  /// removed.
  @inline(__always)
  mutating func add(_ operation: IOOperation, unknown place: Image.Place, tag: UInt32) {
    if end &- first > mask { makeRoom() }
    unsafe (transfers + (end & mask)).initialize(to: Transfer(operation: operation, place: place, tag: tag))
    end &+= 1
  }

  /// A transfer where it is: a copy of it would wait for what was just stored. - Parameter number: how many were added before it.
  subscript(number: Int) -> UnsafeMutablePointer<Transfer> {
    @inline(__always) get { unsafe transfers + (number & mask) }
  }

  /// Removes all transfers from this one on.
  mutating func remove(from number: Int) { end = number }

  /// Doubles the ring, which happens a few times in the life of a queue.
  @inline(never)
  private mutating func makeRoom() {
    let room = 2 * (mask + 1)
    let larger = unsafe Self.allocate(room)
    for index in first..<end { unsafe (larger + (index & (room - 1))).initialize(to: transfers[index & mask]) }
    unsafe transfers.deallocate()
    unsafe transfers = larger
    mask = room - 1
  }

  /// How many were added so far, and not removed.
  var added: Int {
    @inline(__always) get { end }
  }

  /// Nothing that was added is reported any more.
  mutating func abandon() { (first, next, hasReported) = (end, end, false) }

  /// There is nothing to copy or report.
  var isEmpty: Bool {
    @inline(__always) get { first == end }
  }

  /// The next completed copy; `nil`: there is none, or it is time to check other events first and then to ask again.
  @inline(__always)
  mutating func nextCompletion(_ image: inout Image) -> EngineEvent? {
    if first == next {
      guard first != end, !hasReported else {
        hasReported = false
        return nil
      }
      copySome(&image)
      hasReported = true
    }
    let done = unsafe transfers[first & mask]
    first &+= 1
    return .completion(tag: done.tag, result: done.result)
  }

  // MARK: Copies

  private mutating func copySome(_ image: inout Image) {
    let bounds = Self.copiesAtOnce
    let stop = min(end, next &+ max(bounds.least, min((end &- next) / 2, bounds.most)))
    var bytes: UInt64 = 0
    while next < stop, bytes < Self.bytesAtOnce {
      if copyFour(&image) { continue }
      let transfer = unsafe transfers + (next & mask)
      next &+= 1
      if next != end { unsafe fetch(transfers[next & mask].operation, transfers[next & mask].place, image) }
      unsafe bytes &+= transfer.pointee.operation.length
      unsafe transfer.pointee.result = image.perform(transfer.pointee.operation, transfer.pointee.place)
    }
    // When one of them is reported, its bytes are visible.
    clinux_streamed()
  }

  /// Copies the next four transfers at once, if they are small reads of data.
  /// - Returns: whether it did.
  @inline(__always)
  private mutating func copyFour(_ image: inout Image) -> Bool {
    guard end &- next >= 4, !image.isCut, isSharedRead(0, image), isSharedRead(1, image), isSharedRead(2, image),
      isSharedRead(3, image)
    else { return false }
    let from = unsafe places(next, image)
    let to = unsafe clinux_four(
      first: buffer(0).base, second: buffer(1).base, third: buffer(2).base, fourth: buffer(3).base)
    let common = min(min(buffer(0).count, buffer(1).count), min(buffer(2).count, buffer(3).count)) & ~63
    unsafe clinux_copy_four(to, from, end &- next >= 8 ? places(next &+ 4, image) : from, common)
    for ahead in 0..<4 {
      let transfer = unsafe transfers + ((next &+ ahead) & mask)
      let count = buffer(ahead).count
      if count > common {
        unsafe (buffer(ahead).base + common).copyMemory(
          from: image.address(of: transfer.pointee.operation, transfer.pointee.place) + common, byteCount: count &- common)
      }
      unsafe transfer.pointee.result = image.result(of: transfer.pointee.operation)
    }
    next &+= 4
    return true
  }

  @inline(__always)
  private func isSharedRead(_ ahead: Int, _ image: borrowing Image) -> Bool {
    let transfer = unsafe transfers + ((next &+ ahead) & mask)
    let operation = unsafe transfer.pointee.operation
    return unsafe operation.kind == .read && operation.segmentCount == 1 && operation.length <= Self.sharedBytes
      && image.isData(operation, transfer.pointee.place)
  }

  @inline(__always)
  private func buffer(_ ahead: Int) -> MemorySegment {
    unsafe transfers[(next &+ ahead) & mask].operation.segments.unsafelyUnwrapped.pointee
  }

  /// Where the data of four transfers is.
  @inline(__always)
  private func places(_ index: Int, _ image: borrowing Image) -> clinux_four {
    unsafe clinux_four(
      first: address(index, image), second: address(index &+ 1, image), third: address(index &+ 2, image),
      fourth: address(index &+ 3, image))
  }

  @inline(__always)
  private func address(_ index: Int, _ image: borrowing Image) -> UnsafeMutableRawPointer {
    let transfer = unsafe transfers + (index & mask)
    return unsafe image.address(of: transfer.pointee.operation, transfer.pointee.place)
  }

  /// Prefetches the beginning of what is to be copied.
  @inline(__always)
  private func fetch(_ operation: IOOperation, _ place: Image.Place, _ image: borrowing Image) {
    unsafe CopyKernel.fetch(
      operation.kind == .read ? image.address(of: operation, place) : operation.segments.unsafelyUnwrapped.pointee.base)
  }
}
