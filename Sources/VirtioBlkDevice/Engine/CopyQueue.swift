/// Transfers to and from a mapped image, which are copies.
///
/// A copy between memories that no cache has is mostly waiting for lines. So a transfer is not made when it is started but
/// when the worker asks for events: by then others are known. Small reads are made four at a time; of the others the first
/// lines of the next one come from memory meanwhile.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct CopyQueue: ~Copyable {
  /// Lines to fetch beforehand; then the processor has seen where a copy goes.
  private static let linesAhead: UInt32 = 4
  /// Copies that are made before the first of them is reported, so that one fence serves all: half of what there is, within
  /// these bounds. The driver refills the ring while the other half is copied.
  private static let copiesAtOnce = (least: 8, most: 64)
  /// Bytes of a read up to which it is made together with others. One that is longer keeps the processor's own prefetching
  /// busy, and only that.
  private static let sharedBytes: UInt64 = 16384
  /// Bytes from which on a copy into a large image goes around the caches: they could not keep it, and the old content of
  /// its lines need not be fetched.
  private static let streamedBytes = 1024

  /// A transfer that was started, and what became of it.
  private struct Transfer {
    var operation: IOOperation
    var tag: UInt32
    var result: Int32 = 0
  }

  private let medium: PlainIO
  private let image: MappedImage
  // What each copy needs of it.
  private let base: UnsafeMutableRawPointer
  private let windows: PopulatedWindows.View?
  private let faults: SharedCell<UInt64>?
  private let cut: SharedCell<UInt32>
  private let size: UInt64
  /// System calls made.
  private(set) var calls: UInt64
  /// A ring of transfers: from `first` on they are made and not yet reported, from `next` on not even made.
  private let transfers: UnsafeMutablePointer<Transfer>
  private let mask: Int
  private var first: Int
  private var next: Int
  private var end: Int
  /// Copies were reported since the last look for other events: before more are made, the ring is looked at again, so that
  /// those are known that come after them.
  private var hasReported = false
  private let streamedFrom: Int

  /// - Parameters:
  ///   - descriptor: the image.
  ///   - depth: transfers that can be under way at once.
  init(_ image: MappedImage, descriptor: Int32, depth: Int) {
    var capacity = 1
    while capacity < depth { capacity *= 2 }
    self.image = image
    unsafe base = image.mapping.base
    windows = image.windows?.view
    faults = image.mapping.faultCount
    cut = image.cut
    size = UInt64(image.mapping.count)
    medium = PlainIO(descriptor: descriptor)
    calls = 0
    unsafe transfers = .allocate(capacity: capacity)
    mask = capacity - 1
    first = 0
    next = 0
    end = 0
    let cache = sysconf(Int32(_SC_LEVEL3_CACHE_SIZE))
    streamedFrom = size > UInt64(cache > 0 ? cache : 32 << 20) ? Self.streamedBytes : .max
  }

  deinit { unsafe transfers.deallocate() }

  /// Whether an operation is one for copies: a transfer inside the image.
  @inline(__always)
  func takes(_ operation: IOOperation) -> Bool {
    (operation.kind == .read || operation.kind == .write) && operation.length &- 1 < 0x7fff_f000 && operation.offset <= size
      && operation.length <= size &- operation.offset
  }

  /// Whether all that a transfer touches is known to be data.
  @inline(__always)
  func isData(_ operation: IOOperation) -> Bool { windows?.isData(operation.offset, operation.length) ?? true }

  /// A copy to be made. - Parameter operation: one that `takes` says yes to; there is room for it.
  @inline(__always)
  mutating func add(_ operation: IOOperation, tag: UInt32) {
    // The first of a batch has nobody to hide behind but the bookkeeping.
    if next == end { fetch(operation) }
    unsafe (transfers + (end & mask)).initialize(to: Transfer(operation: operation, tag: tag))
    end &+= 1
  }

  /// The mapping is not to be used any more.
  var isCut: Bool {
    @inline(__always) get { cut.loadRelaxed() != 0 }
  }

  /// Nothing is to be copied or reported.
  var isEmpty: Bool {
    @inline(__always) get { first == end }
  }

  /// The next copy that was made, or `nil` when it is time to look at everything else, and then to come back.
  @inline(__always)
  mutating func nextCompletion() -> EngineEvent? {
    if first == next, first != end, !hasReported {
      copySome()
      hasReported = true
    }
    guard first != next else {
      hasReported = false
      return nil
    }
    let done = unsafe transfers[first & mask]
    first &+= 1
    return .completion(tag: done.tag, result: done.result)
  }

  // MARK: Copies

  private mutating func copySome() {
    let bounds = Self.copiesAtOnce
    let stop = min(end, next &+ max(bounds.least, min((end &- next) / 2, bounds.most)))
    while next < stop {
      if copyFour() { continue }
      let transfer = unsafe transfers + (next & mask)
      next &+= 1
      if next != end { unsafe fetch(transfers[next & mask].operation) }
      unsafe transfer.pointee.result = perform(transfer.pointee.operation)
    }
    // Whoever sees one of them reported sees its bytes.
    clinux_streamed()
  }

  /// Makes the next four transfers at once, if they are small reads of data.
  /// - Returns: whether it did.
  @inline(__always)
  private mutating func copyFour() -> Bool {
    guard end &- next >= 4, cut.loadRelaxed() == 0, isSharedRead(0), isSharedRead(1), isSharedRead(2), isSharedRead(3)
    else { return false }
    let from = unsafe places(next)
    let to = unsafe clinux_four(
      first: buffer(0).base, second: buffer(1).base, third: buffer(2).base, fourth: buffer(3).base)
    let common = min(min(buffer(0).count, buffer(1).count), min(buffer(2).count, buffer(3).count)) & ~63
    unsafe clinux_copy_four(to, from, end &- next >= 8 ? places(next &+ 4) : from, common)
    for ahead in 0..<4 {
      let transfer = unsafe transfers + ((next &+ ahead) & mask)
      let count = buffer(ahead).count
      if count > common {
        unsafe (buffer(ahead).base + common).copyMemory(
          from: base + Int(transfer.pointee.operation.offset) + common, byteCount: count &- common)
      }
      unsafe transfer.pointee.result = result(of: transfer.pointee.operation)
    }
    next &+= 4
    return true
  }

  @inline(__always)
  private func isSharedRead(_ ahead: Int) -> Bool {
    let operation = unsafe transfers[(next &+ ahead) & mask].operation
    return operation.kind == .read && operation.segmentCount == 1 && operation.length <= Self.sharedBytes
      && isData(operation)
  }

  @inline(__always)
  private func buffer(_ ahead: Int) -> MemorySegment {
    unsafe transfers[(next &+ ahead) & mask].operation.segments.unsafelyUnwrapped.pointee
  }

  /// Where four transfers are in the image.
  @inline(__always)
  private func places(_ index: Int) -> clinux_four {
    func place(_ index: Int) -> UnsafeMutableRawPointer {
      unsafe base + Int(truncatingIfNeeded: transfers[index & mask].operation.offset)
    }
    return unsafe clinux_four(
      first: place(index), second: place(index &+ 1), third: place(index &+ 2), fourth: place(index &+ 3))
  }

  /// Has the beginning of what is to be copied brought into the cache.
  @inline(__always)
  private func fetch(_ operation: IOOperation) {
    let segment = unsafe operation.segments.unsafelyUnwrapped.pointee.base
    let place = unsafe base + Int(operation.offset)
    unsafe clinux_prefetch(operation.kind == .read ? place : segment, Self.linesAhead)
  }

  @inline(__always)
  private mutating func perform(_ operation: IOOperation) -> Int32 {
    guard isData(operation), cut.loadRelaxed() == 0 else {
      return performWithoutData(operation)
    }
    return copy(operation)
  }

  @inline(__always)
  private mutating func copy(_ operation: IOOperation) -> Int32 {
    var place = unsafe base + Int(operation.offset)
    if operation.kind == .read {
      for index in 0..<operation.segmentCount {
        let segment = unsafe operation.segments.unsafelyUnwrapped[index]
        unsafe segment.base.copyMemory(from: place, byteCount: segment.count)
        unsafe place += segment.count
      }
    } else {
      for index in 0..<operation.segmentCount {
        let segment = unsafe operation.segments.unsafelyUnwrapped[index]
        if segment.count >= streamedFrom {
          unsafe clinux_copy_around_cache(place, segment.base, segment.count)
        } else {
          unsafe place.copyMemory(from: segment.base, byteCount: segment.count)
        }
        unsafe place += segment.count
      }
    }
    return result(of: operation)
  }

  /// What is to be said of a copy that was made.
  @inline(__always)
  private mutating func result(of operation: IOOperation) -> Int32 {
    guard faults?.loadRelaxed() ?? 0 == 0 else {
      return lost(operation)
    }
    if operation.isDurable { return unsafe performOtherwise(IOOperation(kind: .flush), answer: Int32(operation.length)) }
    return Int32(truncatingIfNeeded: operation.length)
  }

  /// The copy, or another queue's, ran into the end of a file that was cut, of the memory behind it, or into what the medium
  /// cannot read. Of a medium the kernel can say more.
  @inline(never)
  private mutating func lost(_ operation: IOOperation) -> Int32 {
    cut.storeRelaxed(1)
    return image.isCache ? performOtherwise(operation) : -Errno.ioError.rawValue
  }

  /// A transfer of what is not known to be data.
  @inline(never)
  private mutating func performWithoutData(_ operation: IOOperation) -> Int32 {
    guard let windows = image.windows, cut.loadRelaxed() == 0 else { return performOtherwise(operation) }
    switch windows.look(operation.offset, operation.length) {
    case .data: return copy(operation)
    case .sparse:
      let result = performOtherwise(operation)
      if operation.kind == .write {
        if result > 0 { windows.filled(operation.offset, UInt64(result)) }
        return result
      }
      // Only the end of the file makes a read fall short.
      guard result >= 0, result < Int32(operation.length) else { return result }
    case .cut: break
    }
    return lost(operation)
  }

  @inline(never)
  mutating func performOtherwise(_ operation: IOOperation, answer: Int32? = nil) -> Int32 {
    calls &+= 1
    let result = medium.perform(operation)
    forgetHoles(of: operation)
    return result < 0 ? result : answer ?? result
  }

  /// What is known of a range is void where an operation makes holes or fills them.
  func forgetHoles(of operation: IOOperation) {
    switch operation.kind {
    case .punchHole, .zeroRange, .allocate:
      image.windows?.forget(operation.offset, min(operation.length, size &- min(operation.offset, size)))
    case .read, .write, .flush: break
    }
  }
}
