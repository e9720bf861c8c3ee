/// The map of one image: which part of its file has which part of the disk, according to the tables that have been read.
internal import Qcow2
internal import VirtioCore

/// What one image has at an offset of the disk.
struct Qcow2Piece {
  enum Kind: Equatable {
    /// Nothing: the image below this one decides.
    case absent
    case zero
    /// In the layer's data file.
    case data(UInt64)
    /// - Parameters:
    ///   - offset: in the layer's file, bytes.
    ///   - count: bytes to read for it.
    case compressed(offset: UInt64, count: Int)
    /// A table has to be read first, which may block.
    case notLoaded
    /// The image contradicts itself, or cannot be read.
    case failed
  }

  var kind: Kind
  /// Data in a cluster that is not shared: it may be written in place.
  var isOwn = false
  /// The number of bytes of the disk that it is true for; at least 1.
  var count: UInt64
}

/// Valid for as long as the layer lives: it refers to the layer's memory, not to the layer, so that a lookup changes no reference
/// count. Tables are added and changed by the layer alone, and any thread may look at any time.
///
/// In an image that is written to, entries change one at a time, and a reader sees an entry as it was either before or after a
/// change: a sequence number is incremented before and after each change. The data that an entry referred to stays unchanged
/// for as long as the image is open, so a reader that saw the old entry may still read it.
@safe
struct Qcow2Map {
  /// Bytes of the disk.
  let size: UInt64
  let geometry: Qcow2Geometry
  /// How tables are decoded; `nil`: a raw disk.
  let entries: Qcow2Entries?
  /// The image is written to.
  let isWritten: Bool
  /// The number of L2 tables that it can have.
  let count: Int
  private let shifts: Shifts
  /// The end of what has tables, bytes of the disk; 0: a raw disk.
  private let mappedEnd: UInt64
  /// The words at the beginning, the addresses of the tables, and their offsets in the file.
  private let words: UnsafeMutableRawPointer?

  /// What `geometry` says, ready for a lookup.
  private struct Shifts {
    let cluster: UInt64
    let clusterMask: UInt64
    let span: UInt64
    let spanMask: UInt64
    let entry: UInt64

    init(_ geometry: Qcow2Geometry) {
      cluster = UInt64(geometry.clusterBits)
      clusterMask = geometry.clusterSize - 1
      span = UInt64(geometry.level2Span.trailingZeroBitCount)
      spanMask = geometry.level2Span - 1
      entry = UInt64(geometry.entryBytes.trailingZeroBitCount)
    }
  }

  /// Bytes of the words at the beginning: a cache line, because they change while others are read.
  private static let head = 64

  /// A raw disk.
  init(rawOf size: UInt64) {
    self.size = size
    geometry = Qcow2Geometry(clusterBits: 16, isExtended: false)
    shifts = Shifts(geometry)
    (entries, isWritten, count, mappedEnd) = (nil, false, 0, 0)
    unsafe words = nil
  }

  /// - Parameter memory: zeroed, of `bytes(for: count)`.
  init(_ memory: Mapping, size: UInt64, _ entries: Qcow2Entries, isWritten: Bool, count: Int) {
    (self.size, geometry, self.entries) = (size, entries.geometry, entries)
    shifts = Shifts(entries.geometry)
    (self.isWritten, self.count) = (isWritten, count)
    // Only where there is room for a table's address may one be looked for, whatever the caller says.
    let (end, overflow) = entries.geometry.level2Span.multipliedReportingOverflow(by: UInt64(count))
    mappedEnd = overflow ? size : min(size, end)
    unsafe words = memory.base
  }

  /// Bytes of memory that a map of so many tables needs.
  static func bytes(for count: Int) -> Int { head + 16 * count }

  // MARK: Lookup

  /// What is at an offset of the disk.
  ///
  /// - Parameters:
  ///   - offset: bytes.
  ///   - limit: how many bytes are of interest; at least 1.
  /// - Returns: `nil` if entries keep changing; then the layer has to be asked.
  @inline(__always)
  func look(at offset: UInt64, limit: UInt64) -> Qcow2Piece? {
    guard isWritten else { return lookOnce(at: offset, limit: limit) }
    guard let number else { return nil }
    for _ in 0..<Self.looks {
      // Acquire: the number is read before the entries, and again after them.
      let before = number.loadAcquire()
      guard before & 1 == 0 else { continue }
      let piece = lookOnce(at: offset, limit: limit)
      if number.loadAfterLoads() == before { return piece }
    }
    return nil
  }

  /// How often to retry.
  private static let looks = 16

  /// What a range has that is in one cluster, if it is data or not in this image; for nearly all transfers.
  enum Glance {
    case absent
    case data(UInt64, isOwn: Bool)
    /// Anything else: `look` knows.
    case unclear
  }

  /// Where the entry of an offset is; `nil`: in no table that has been read.
  @inline(__always)
  func entry(of offset: UInt64) -> UnsafeMutableRawPointer? {
    guard offset < mappedEnd else { return nil }
    // What is mapped has words.
    let words = unsafe words.unsafelyUnwrapped + Self.head
    let address = unsafe SharedCell<UInt64>(words + Int(truncatingIfNeeded: offset &>> shifts.span) &<< 3).loadAcquire()
    guard let table = unsafe UnsafeMutableRawPointer(bitPattern: UInt(address)) else { return nil }
    return unsafe table + Int(truncatingIfNeeded: ((offset & shifts.spanMask) &>> shifts.cluster) &<< shifts.entry)
  }

  /// The same as `look` for a range, in a few instructions, or no answer. It calls nothing: a call would take a copy of the map.
  ///
  /// - Parameters:
  ///   - offset: bytes.
  ///   - length: bytes, at least 1.
  ///   - entry: where the entry was when `entry(of:)` was asked.
  @inline(__always)
  func glance(at offset: UInt64, _ length: UInt64, entry: UnsafeMutableRawPointer) -> Glance {
    // An image with tables has these, and the offset of an entry is inside the image.
    let entries = unsafe entries.unsafelyUnwrapped
    let inside = offset & shifts.clusterMask
    guard length <= size &- offset, length &- 1 <= shifts.clusterMask &- inside else { return .unclear }
    guard geometry.isExtended else {
      // A single word is never seen half changed.
      let word = unsafe UInt64(bigEndian: SharedCell<UInt64>(entry).loadRelaxed())
      guard let (place, isOwn) = entries.plainCluster(word) else { return .unclear }
      return place == 0 ? .absent : .data(place &+ inside, isOwn: isOwn)
    }
    // Acquire: the number is read before the words, and again after them.
    let before = isWritten ? number?.loadAcquire() ?? 1 : 0
    let word = unsafe UInt64(bigEndian: SharedCell<UInt64>(entry).loadRelaxed())
    let bitmap = unsafe UInt64(bigEndian: SharedCell<UInt64>(entry + 8).loadRelaxed())
    guard before & 1 == 0, !isWritten || number?.loadAfterLoads() == before, let (place, isOwn) = entries.plainCluster(word)
    else { return .unclear }
    // Otherwise the entry contradicts itself.
    guard bitmap & bitmap &>> 32 == 0, place != 0 || UInt32(truncatingIfNeeded: bitmap) == 0 else { return .unclear }
    let first = inside &>> geometry.subclusterBits
    let last = (inside &+ length &- 1) &>> geometry.subclusterBits
    // One bit for each subcluster of the range.
    let asked = (2 &<< last) &- (1 &<< first)
    if bitmap & (asked | asked &<< 32) == 0 { return .absent }
    return bitmap & asked == asked && bitmap & asked &<< 32 == 0 ? .data(place &+ inside, isOwn: isOwn) : .unclear
  }

  /// The same, wherever the entry is. - Parameter length: bytes, at least 1.
  @inline(never)
  func glance(at offset: UInt64, _ length: UInt64) -> Glance {
    if let entry = unsafe entry(of: offset) { return unsafe glance(at: offset, length, entry: entry) }
    guard offset < size, length <= size &- offset else { return .unclear }
    guard entries != nil else { return .data(offset, isOwn: false) }
    let isInTable = length &- 1 <= shifts.spanMask &- offset & shifts.spanMask
    return isInTable && place(geometry.level1Index(offset)) == 0 ? .absent : .unclear
  }

  /// The same as `look`, while no entry changes.
  func lookOnce(at offset: UInt64, limit: UInt64) -> Qcow2Piece {
    // Beyond the end of an image that is shorter than the one above it there are zeroes.
    guard offset < size else { return Qcow2Piece(kind: .zero, count: limit) }
    let limit = min(limit, size &- offset)
    guard let entries else { return Qcow2Piece(kind: .data(offset), count: limit) }
    let index = geometry.level1Index(offset)
    let inTable = min(limit, geometry.level2Span &- geometry.inLevel2Span(offset))
    guard place(index) != 0 else { return Qcow2Piece(kind: .absent, count: inTable) }
    guard let table = unsafe table(index) else { return Qcow2Piece(kind: .notLoaded, count: inTable) }
    var piece = unsafe unit(table, entries, offset)
    // Everything that is contiguous on the disk and in the file is included.
    while piece.count < inTable {
      let next = unsafe unit(table, entries, offset &+ piece.count)
      switch (piece.kind, next.kind) {
      case (.absent, .absent), (.zero, .zero): break
      case (.data(let place), .data(let other)) where place &+ piece.count == other && piece.isOwn == next.isOwn: break
      default: return piece
      }
      piece.count &+= next.count
    }
    piece.count = inTable
    return piece
  }

  /// The contents at an offset according to a table, and how far into the cluster they extend.
  @inline(__always)
  private func unit(_ table: UnsafeRawPointer, _ entries: Qcow2Entries, _ offset: UInt64) -> Qcow2Piece {
    let (entry, bitmap) = unsafe words(table, offset)
    let inside = geometry.inCluster(offset)
    let rest = geometry.clusterSize &- inside
    let isOwn = Self.isOwn(entry)
    let cluster: Qcow2Cluster
    do throws(Qcow2Fault) { cluster = try entries.level2(entry, bitmap: bitmap) } catch {
      return Qcow2Piece(kind: .failed, count: rest)
    }
    switch cluster {
    case .unallocated: return Qcow2Piece(kind: .absent, count: rest)
    case .zero: return Qcow2Piece(kind: .zero, count: rest)
    case .data(let host): return Qcow2Piece(kind: .data(host &+ inside), isOwn: isOwn, count: rest)
    case .compressed(let host, let count): return Qcow2Piece(kind: .compressed(offset: host, count: count), count: rest)
    case .subclusters(let host, let data, let zero):
      let first = UInt32(truncatingIfNeeded: inside / geometry.subclusterSize)
      let bit: UInt32 = 1 << first
      let alike = data & bit != 0 ? data : zero & bit != 0 ? zero : ~(data | zero)
      // Consecutive subclusters of the same kind as the first one.
      let run = UInt64((~(alike >> first)).trailingZeroBitCount)
      let end = (UInt64(first) &+ min(run, UInt64(32 - first))) &* geometry.subclusterSize
      let kind: Qcow2Piece.Kind = data & bit != 0 ? .data((host ?? 0) &+ inside) : zero & bit != 0 ? .zero : .absent
      return Qcow2Piece(kind: kind, isOwn: isOwn && data & bit != 0, count: end &- inside)
    }
  }

  private static let compressedBit: UInt64 = 1 << 62
  private static let ownBits: UInt64 = 1 << 63 | compressedBit

  /// A cluster that no one shares, and that is not compressed.
  static func isOwn(_ entry: UInt64) -> Bool { entry & ownBits == ownBits & ~compressedBit }

  /// The words of an entry in a table.
  @inline(__always)
  func words(_ table: UnsafeRawPointer, _ offset: UInt64) -> (entry: UInt64, bitmap: UInt64) {
    let cell = unsafe UnsafeMutableRawPointer(mutating: table) + geometry.level2Index(offset) * geometry.entryBytes
    let entry = unsafe UInt64(bigEndian: SharedCell<UInt64>(cell).loadRelaxed())
    let bitmap = unsafe geometry.isExtended ? UInt64(bigEndian: SharedCell<UInt64>(cell + 8).loadRelaxed()) : 0
    return (entry, bitmap)
  }

  // MARK: Words

  /// The sequence number of entries: odd while one is being changed.
  var number: SharedCell<UInt64>? {
    @inline(__always) get { unsafe words.map { unsafe SharedCell($0) } }
  }

  /// A table was rejected because of its contents.
  var contradictsItself: Bool {
    @inline(__always) get { contradiction?.loadRelaxed() ?? 0 != 0 }
  }

  /// Not 0: the same.
  var contradiction: SharedCell<UInt64>? {
    @inline(__always) get { unsafe words.map { unsafe SharedCell($0 + 8) } }
  }

  /// The address of a table; 0: it has not been read. Once set it changes only from the shared table of zeroes to one of its own.
  @inline(__always)
  func address(_ index: Int) -> SharedCell<UInt64>? {
    guard index < count, let words = unsafe words else { return nil }
    return unsafe SharedCell(words + Self.head + index * 8)
  }

  /// The offset of a table in the file, which never becomes 0 again; 0: there is none.
  @inline(__always)
  func position(_ index: Int) -> SharedCell<UInt64>? {
    guard index < count, let words = unsafe words else { return nil }
    return unsafe SharedCell(words + Self.head + (count + index) * 8)
  }

  /// Acquire: a reader of the offset also sees a table that was never read from the file.
  @inline(__always)
  func place(_ index: Int) -> UInt64 { position(index)?.loadAcquire() ?? 0 }

  /// Acquire: a reader of the address sees the table.
  @inline(__always)
  func table(_ index: Int) -> UnsafeMutableRawPointer? {
    guard let address = address(index)?.loadAcquire(), address != 0 else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: UInt(address))
  }
}
