/// The guest's memory as an immutable table of regions, each mapped into this process. A change of memory is a new table,
/// put in place while no queue runs.

/// Why a list of regions is not accepted as guest memory.
public enum GuestMemoryError: Error, Equatable, CustomStringConvertible {
  /// More than `GuestMemory.maximumRegions`.
  case tooManyRegions(Int)
  /// The region at this address has no bytes.
  case emptyRegion(GuestAddress)
  /// It would end beyond the last 64-bit address; its start, and its size in bytes.
  case regionLeavesAddressSpace(GuestAddress, size: UInt64)
  /// It is not within its mapping; its start, and its size in bytes.
  case regionLeavesMapping(GuestAddress, size: UInt64)
  /// Two regions share addresses; their starts, the lower one first.
  case overlap(GuestAddress, GuestAddress)

  /// One sentence for a person: what happened, and with what.
  public var description: String {
    switch self {
    case .tooManyRegions(let count): "\(count) memory regions are more than the \(GuestMemory.maximumRegions) supported"
    case .emptyRegion(let start): "the memory region at \(start) is empty"
    case .regionLeavesAddressSpace(let start, let size):
      "the memory region at \(start) with \(size) bytes goes past the end of the 64-bit address space"
    case .regionLeavesMapping(let start, let size):
      "the memory region at \(start) with \(size) bytes is larger than what was mapped for it"
    case .overlap(let one, let other): "the memory regions at \(one) and \(other) overlap"
    }
  }
}

/// One region: a guest-physical range and where it lies in this process.
public struct GuestRegion: Sendable {
  /// The guest's address of its first byte.
  public let start: GuestAddress
  /// Bytes; at least 1.
  public let size: UInt64
  /// The mapping that it is a part of. The region keeps it mapped.
  public let mapping: Mapping
  /// Where in the mapping the region begins, bytes.
  public let offset: Int

  /// Nothing is checked here; `GuestMemory.init` does that.
  public init(start: GuestAddress, size: UInt64, mapping: Mapping, offset: Int = 0) {
    self.start = start
    self.size = size
    self.mapping = mapping
    self.offset = offset
  }
}

/// An immutable, sorted, non-overlapping set of regions. Look-ups go through a `GuestMemoryView`, of which each queue has its
/// own, so that nothing here is ever written after `init`.
@safe
public final class GuestMemory: @unchecked Sendable {
  /// Linux's vhost default and what rust-vmm's back-ends answer to GET_MAX_MEM_SLOTS.
  public static let maximumRegions = 509

  /// Sorted by guest address.
  public let regions: [GuestRegion]
  /// The regions again, in the form for look-ups, after an empty one that begins at 0.
  let table: UnsafeMutablePointer<GuestMemoryView.Entry>
  /// For each of `granules` equal parts of the address range in use, the region that covers most of it: the entry in `table`.
  /// One look then finds the region of most addresses, however many regions there are.
  let likely: UnsafeMutablePointer<UnsafePointer<GuestMemoryView.Entry>>
  let granuleShift: UInt64
  /// A power of two, at least sixteen for each region: few parts are shared by regions, and none if the regions are as regular
  /// as DIMMs.
  let granules: Int
  /// Regions in `table`.
  let tableCount: Int
  /// For a driver behind an IOMMU: translates its addresses; `nil`: they are guest-physical addresses.
  public let lookup: TranslationLookup?
  private let base: GuestMemory?

  /// - Parameter regions: in any order; none may be empty, and no two may overlap.
  /// - Throws: `GuestMemoryError` for the first region that does not fit.
  public init(_ regions: [GuestRegion]) throws(GuestMemoryError) {
    guard regions.count <= Self.maximumRegions else { throw .tooManyRegions(regions.count) }
    let sorted = regions.sorted { $0.start < $1.start }
    var previousLast: (start: GuestAddress, last: UInt64)? = nil
    for region in sorted {
      guard region.size > 0 else { throw .emptyRegion(region.start) }
      guard let last = region.start.advanced(by: region.size - 1) else {
        throw .regionLeavesAddressSpace(region.start, size: region.size)
      }
      let (end, overflow) = region.size.addingReportingOverflow(UInt64(max(region.offset, 0)))
      guard region.offset >= 0, !overflow, end <= UInt64(region.mapping.count) else {
        throw .regionLeavesMapping(region.start, size: region.size)
      }
      if let previous = previousLast, region.start.rawValue <= previous.last { throw .overlap(previous.start, region.start) }
      previousLast = (region.start, last.rawValue)
    }
    self.regions = sorted
    tableCount = sorted.count
    lookup = nil
    base = nil
    unsafe self.table = .allocate(capacity: sorted.count + 1)
    unsafe table.initialize(to: .init(start: 0, size: 0, host: UnsafeMutableRawPointer(table)))
    for (index, region) in sorted.enumerated() {
      unsafe (table + 1 + index).initialize(
        to: .init(start: region.start.rawValue, size: region.size, host: region.mapping.base + region.offset))
    }
    granules = 16 << (Int.bitWidth - max(0, sorted.count - 1).leadingZeroBitCount)
    var shift: UInt64 = 0
    while (previousLast?.last ?? 0) >> shift >= UInt64(granules) { shift += 1 }
    granuleShift = shift
    unsafe likely = .allocate(capacity: granules)
    unsafe likely.initialize(repeating: UnsafePointer(table), count: granules)
    var most: [UInt64] = Array(repeating: 0, count: granules)
    for (index, region) in sorted.enumerated() {
      let (first, last) = (region.start.rawValue, region.start.rawValue + (region.size - 1))
      for granule in Int(first >> shift)...Int(last >> shift) {
        let begin = UInt64(granule) << shift
        let share = min(last, begin + ((1 << shift) - 1)) - max(first, begin) + 1
        guard share > most[granule] else { continue }
        most[granule] = share
        unsafe likely[granule] = UnsafePointer(table + 1 + index)
      }
    }
  }

  /// The same memory for one queue of a driver behind an IOMMU. The regions are the same, but the table is empty: every address
  /// takes the slow path of addresses outside memory, and is translated there.
  public init(_ memory: GuestMemory, translatedBy lookup: TranslationLookup) {
    regions = memory.regions
    tableCount = 0
    self.lookup = lookup
    base = memory
    unsafe table = .allocate(capacity: 1)
    unsafe table.initialize(to: .init(start: 0, size: 0, host: UnsafeMutableRawPointer(table)))
    granules = 1
    granuleShift = 0
    unsafe likely = .allocate(capacity: 1)
    unsafe likely.initialize(to: UnsafePointer(table))
  }

  /// The underlying memory, which all queues of a driver behind an IOMMU share.
  public var untranslated: GuestMemory { base ?? self }

  deinit {
    unsafe table.deallocate()
    unsafe likely.deallocate()
  }

  /// A view with a last-hit cache of its own. It borrows the table: keep this memory alive while the view is used.
  public func view() -> GuestMemoryView { GuestMemoryView(self) }

  /// Some page of it is gone: a file under it was truncated.
  public var hasFaulted: Bool { regions.contains { $0.mapping.faults > 0 } }

  /// Total bytes of all regions.
  public var size: UInt64 { regions.reduce(0) { $0 &+ $1.size } }
}

/// Why a guest range could not be translated.
public enum TranslationError: Error, Equatable {
  /// Some byte of the range lies outside all regions.
  case unmapped
  /// More pieces than the caller has room for.
  case tooManyPieces
}

/// A queue's view of guest memory. A look-up tries the region that was hit last, then the one that an address is most likely
/// in, and then searches.
@safe
public struct GuestMemoryView {
  @safe
  @usableFromInline
  struct Entry {
    @usableFromInline var start: UInt64
    @usableFromInline var size: UInt64
    @usableFromInline var host: UnsafeMutableRawPointer
    @usableFromInline init(start: UInt64, size: UInt64, host: UnsafeMutableRawPointer) {
      self.start = start
      self.size = size
      unsafe self.host = host
    }
  }

  @usableFromInline let table: UnsafePointer<Entry>
  @usableFromInline let count: Int
  @usableFromInline let likely: UnsafePointer<UnsafePointer<Entry>>
  @usableFromInline let granuleShift: UInt64
  @usableFromInline let granuleMask: UInt64
  /// The region of the last hit; an empty one before the first.
  @usableFromInline var last: UnsafePointer<Entry>
  /// Owned by the memory, and valid as long as that.
  @usableFromInline let lookup: Unmanaged<TranslationLookup>?

  init(_ memory: GuestMemory) {
    unsafe table = UnsafePointer(memory.table)
    unsafe lookup = memory.lookup.map { unsafe Unmanaged.passUnretained($0) }
    count = memory.tableCount
    unsafe likely = UnsafePointer(memory.likely)
    granuleShift = memory.granuleShift
    granuleMask = UInt64(memory.granules - 1)
    unsafe last = table
  }

  /// The host address of `address` and the bytes from there to the end of its region; `nil` if it is in no region. Behind an
  /// IOMMU, the translation of the address; `takeMiss` then says what `nil` means.
  ///
  /// No sum here can overflow: an address is inside if its distance from the start is below the size.
  mutating func find(_ address: UInt64, for access: MemoryAccess) -> MemorySegment? {
    if unsafe address &- last.pointee.start >= last.pointee.size, !turn(to: address) { return translated(address, access) }
    let distance = unsafe address &- last.pointee.start
    // No region is larger than its mapping, whose size is an Int.
    return unsafe MemorySegment(
      base: last.pointee.host + Int(truncatingIfNeeded: distance),
      count: Int(truncatingIfNeeded: last.pointee.size &- distance))
  }

  @inline(never)
  private func translated(_ address: UInt64, _ access: MemoryAccess) -> MemorySegment? {
    unsafe lookup?._withUnsafeGuaranteedRef { $0.find(address, for: access) }
  }

  /// The driver is behind an IOMMU.
  var isTranslated: Bool { unsafe lookup != nil }

  /// The access that the last look-up missed, returned once; `nil`: it is not allowed, or there is no IOMMU.
  func takeMiss() -> TranslationMiss? { unsafe lookup?._withUnsafeGuaranteedRef { $0.takeMiss() } }

  /// Why a chain cannot be taken: a missed translation, otherwise what is wrong with the ring.
  func reason(_ error: QueueError) -> QueueError {
    guard isTranslated else { return error }
    guard let miss = takeMiss() else {
      chainIsOver()
      return error
    }
    return .untranslated(miss)
  }

  /// The current chain was walked to its end.
  func chainIsOver() { unsafe lookup?._withUnsafeGuaranteedRef { $0.chainIsOver() } }

  /// Where a descriptor's buffer is, if it is not empty, lies within one region, and that region is found on the fast path.
  /// After `nil`, `find` decides.
  @inlinable @inline(__always)
  mutating func place(_ descriptor: Descriptor) -> UnsafeMutableRawPointer? {
    unsafe place(descriptor.address, length: descriptor.length)
  }

  /// The same for any range.
  @inlinable @inline(__always)
  mutating func place(_ address: UInt64, length: UInt32) -> UnsafeMutableRawPointer? {
    var region = unsafe last
    if unsafe _slowPath(address &- region.pointee.start >= region.pointee.size) {
      unsafe region = likely(address)
      guard unsafe address &- region.pointee.start < region.pointee.size else { return nil }
      unsafe last = region
    }
    let distance = unsafe address &- region.pointee.start
    // The length of an empty buffer wraps around and is too long for any region.
    guard unsafe UInt64(length) &- 1 < region.pointee.size &- distance else { return nil }
    return unsafe region.pointee.host + Int(truncatingIfNeeded: distance)
  }

  /// The region that an address is most likely in. Addresses beyond the last part give some region, too.
  @inlinable @inline(__always)
  func likely(_ address: UInt64) -> UnsafePointer<Entry> {
    unsafe likely[Int(truncatingIfNeeded: address &>> granuleShift & granuleMask)]
  }

  /// Makes the region of an address the last one, if there is one.
  @inline(never)
  private mutating func turn(to address: UInt64) -> Bool {
    let candidate = unsafe likely(address)
    if unsafe address &- candidate.pointee.start < candidate.pointee.size {
      unsafe last = candidate
      return true
    }
    // Perhaps a smaller region in the same part: the last one that does not begin after the address. The first entry, which is
    // empty, begins at 0.
    var (low, high) = (0, count)
    while low < high {
      let middle = (low &+ high &+ 1) &>> 1
      if unsafe table[middle].start <= address { low = middle } else { high = middle &- 1 }
    }
    guard unsafe address &- table[low].start < table[low].size else { return false }
    unsafe last = table + low
    return true
  }

  /// The whole range as one piece, or `nil` if it is not mapped or not contiguous in this process.
  ///
  /// - Parameter access: the kind of access, which matters behind an IOMMU.
  public mutating func contiguous(_ address: GuestAddress, count: Int, for access: MemoryAccess = .read) -> MemorySegment? {
    if let lookup = unsafe lookup, count >= 0 {
      return unsafe lookup._withUnsafeGuaranteedRef { $0.contiguous(address.rawValue, count: count, for: access) }
    }
    guard count >= 0, let piece = find(address.rawValue, for: access), piece.count >= count else { return nil }
    return unsafe MemorySegment(base: piece.base, count: count)
  }

  /// Splits the range into pieces that are contiguous here, in order, and stores them from `output` on.
  ///
  /// - Parameters:
  ///   - length: bytes, at least 1.
  ///   - access: the kind of access, which matters behind an IOMMU.
  ///   - output: room for `capacity` segments.
  /// - Returns: how many pieces were stored, at least 1.
  @inline(__always)
  mutating func translate(
    _ address: UInt64, length: UInt32, for access: MemoryAccess, into output: UnsafeMutablePointer<MemorySegment>,
    capacity: Int
  ) throws(TranslationError) -> Int {
    guard capacity > 0 else { throw .tooManyPieces }
    guard let first = find(address, for: access) else { throw .unmapped }
    if first.count >= Int(length) {
      unsafe output.pointee = MemorySegment(base: first.base, count: Int(length))
      return 1
    }
    return unsafe try translateAcross(
      address, length: length, for: access, first: first, into: output, capacity: capacity)
  }

  /// The rare case: the range continues in the next region.
  @inline(never)
  private mutating func translateAcross(
    _ address: UInt64, length: UInt32, for access: MemoryAccess, first: MemorySegment,
    into output: UnsafeMutablePointer<MemorySegment>, capacity: Int
  ) throws(TranslationError) -> Int {
    unsafe output.pointee = first
    var stored = 1
    var next = address
    var piece = first.count
    var remaining = Int(length) - first.count
    while remaining > 0 {
      // A region may end exactly at 2^64; what follows it is not address 0.
      let (sum, overflow) = next.addingReportingOverflow(UInt64(piece))
      guard !overflow, let found = find(sum, for: access) else { throw .unmapped }
      guard stored < capacity else { throw .tooManyPieces }
      next = sum
      piece = min(found.count, remaining)
      unsafe output[stored] = MemorySegment(base: found.base, count: piece)
      stored += 1
      remaining -= piece
    }
    return stored
  }

  /// The range as an array of pieces; for the control plane and tests.
  public mutating func pieces(_ address: GuestAddress, length: UInt32) throws(TranslationError) -> [MemorySegment] {
    guard length > 0 else { return [] }
    let known = unsafe lookup?._withUnsafeGuaranteedRef { $0.translations.count } ?? count
    let capacity = known + 1
    let room = UnsafeMutablePointer<MemorySegment>.allocate(capacity: capacity)
    defer { unsafe room.deallocate() }
    let stored = unsafe try translate(address.rawValue, length: length, for: .read, into: room, capacity: capacity)
    return unsafe Array(UnsafeBufferPointer(start: room, count: stored))
  }
}
