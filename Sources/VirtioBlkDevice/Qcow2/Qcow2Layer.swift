/// One image of a chain: an open file, and the mapping of its disk.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import SystemPackage
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

/// Immutable except for the tables, which are read on first use. Any thread may read at any time: a table that has been read
/// stays at its address, and does not change unless the image is open for writing.
///
/// In an image that is written to, entries change one at a time, and a reader sees an entry as it was either before or after a
/// change: a sequence number is incremented before and after each change. The data that an entry referred to stays unchanged
/// for as long as the image is open, so a reader that saw the old entry may still read it.
@safe
final class Qcow2Layer: @unchecked Sendable {
  let path: String
  let file: OwnedDescriptor
  /// The file that has the data: `file`, or the external data file.
  let dataFile: OwnedDescriptor
  /// The length of the data file when it was opened, bytes.
  let dataEnd: UInt64
  /// The length of `file` when it was opened, bytes.
  private let fileEnd: UInt64
  /// Bytes of the disk.
  let size: UInt64
  /// How its tables are decoded; `nil`: a raw disk.
  let entries: Qcow2Entries?
  /// `nil` if its library is not installed: then everything but compressed clusters can be read.
  let decompressor: Qcow2Decompressor?
  /// Offsets of the L2 tables in the file; 0: there is none. If the image is written to, those at the time when it was
  /// opened.
  private let level1: [UInt64]
  /// Their current offsets, which never become 0 again. `nil`: the image is not written to.
  private let places: Mapping?
  /// The sequence number of entries: odd while one is being changed.
  private let changes: Mapping?
  private let changing = Mutex<Void>(())
  /// A table was rejected because of its contents.
  private let contradicted = Atomic<Bool>(false)
  /// Clusters of metadata in ascending order, and the end of the file, when it was opened for writing: no data is in the
  /// former or beyond the latter.
  private let fixed: (metadata: [UInt64], end: UInt64)
  /// Addresses of the tables that have been read, each set once; memory is only touched where used.
  private let tables: Mapping?
  /// A table of zeroes: it represents every table that has only zeroes, of which a sparse file may have any number.
  private let blank: Mapping?
  let geometry: Qcow2Geometry
  /// Held while a table is read, so that it is read only once.
  private let loading = Mutex<Void>(())

  /// A raw file or block device.
  init(raw file: OwnedDescriptor, path: String, source: FileSource) {
    self.path = path
    self.file = file
    dataFile = file
    (dataEnd, fileEnd, size) = (source.byteCount, source.byteCount, source.byteCount)
    (entries, decompressor) = (nil, nil)
    (level1, tables, blank, places, changes) = ([], nil, nil, nil, nil)
    fixed = ([], 0)
    geometry = Qcow2Geometry(clusterBits: 16, isExtended: false)
  }

  /// - Parameters:
  ///   - data: its external data file, if it has one.
  ///   - snapshot: an internal snapshot; `nil`: the active disk.
  ///   - keeper: of an image that is written to.
  ///   - find: loads the library for decompression. It is called here, because a sandboxed process cannot load libraries.
  init(
    _ header: Qcow2Header, _ file: OwnedDescriptor, path: String, source: FileSource, data: (OwnedDescriptor, FileSource)?,
    snapshot: String?, keeper: ImageKeeper? = nil,
    find: (Qcow2Compression) throws(Qcow2Fault) -> Qcow2Decompressor = Qcow2Decompressor.find
  ) throws(Qcow2Fault) {
    self.path = path
    self.file = file
    dataFile = data?.0 ?? file
    fileEnd = source.byteCount
    dataEnd = data?.1.byteCount ?? fileEnd
    geometry = header.geometry
    entries = Qcow2Entries(header)
    // Any image may have clusters compressed with zlib, and most have none: only an image that says zstd needs its library
    // to be opened.
    decompressor = header.compression == .zlib ? try? find(.zlib) : try find(header.compression)
    if let snapshot {
      let found = try header.snapshot(snapshot, source)
      level1 = try header.level1(source, of: found)
      size = found.diskSize ?? header.size
    } else {
      level1 = try header.level1(source)
      size = header.size
    }
    do throws(Errno) {
      tables = level1.isEmpty ? nil : try Mapping(anonymous: level1.count * 8)
      blank = level1.isEmpty ? nil : try Mapping(anonymous: Int(header.clusterSize))
      places = level1.isEmpty || keeper == nil ? nil : try Mapping(anonymous: level1.count * 8)
      changes = keeper == nil ? nil : try Mapping(anonymous: 8)
    } catch { throw .cannotRead(error) }
    fixed = (keeper?.metadata.sorted() ?? [], keeper?.firstEnd ?? 0)
    guard let places else { return }
    for (index, place) in level1.enumerated() { unsafe SharedCell<UInt64>(places.base + index * 8).storeRelaxed(place) }
  }

  deinit {
    for index in level1.indices where holdsMemory(index) { if let table = unsafe table(index) { unsafe table.deallocate() } }
  }

  /// The number of tables that take memory.
  var heldTables: Int { level1.indices.count { holdsMemory($0) } }

  private func holdsMemory(_ index: Int) -> Bool {
    guard let table = unsafe table(index) else { return false }
    return unsafe table != blank?.base
  }

  /// Size of a cluster, bytes.
  var clusterSize: UInt64 { geometry.clusterSize }

  // MARK: Lookup

  /// - Parameters:
  ///   - offset: of the disk, bytes.
  ///   - limit: how many bytes are of interest; at least 1.
  ///   - mayWait: missing tables are read.
  func look(at offset: UInt64, limit: UInt64, mayWait: Bool) -> Qcow2Piece {
    guard let changes else { return lookOnce(at: offset, limit: limit, mayWait: mayWait) }
    let number = unsafe SharedCell<UInt64>(changes.base)
    for _ in 0..<Self.looks {
      // Acquire: the number is read before the entries, and again after them.
      let before = number.loadAcquire()
      guard before & 1 == 0 else { continue }
      let piece = lookOnce(at: offset, limit: limit, mayWait: mayWait)
      if number.loadAfterLoads() == before { return piece }
    }
    return changing.withLock { _ in lookOnce(at: offset, limit: limit, mayWait: mayWait) }
  }

  /// How often to retry before waiting for the writer.
  private static let looks = 16

  private func lookOnce(at offset: UInt64, limit: UInt64, mayWait: Bool) -> Qcow2Piece {
    // Beyond the end of an image that is shorter than the one above it there are zeroes.
    guard offset < size else { return Qcow2Piece(kind: .zero, count: limit) }
    let limit = min(limit, size &- offset)
    guard let entries else { return Qcow2Piece(kind: .data(offset), count: limit) }
    let index = geometry.level1Index(offset)
    let inTable = min(limit, geometry.level2Span &- offset % geometry.level2Span)
    guard place(index) != 0 else { return Qcow2Piece(kind: .absent, count: inTable) }
    guard let table = unsafe table(index) ?? (mayWait ? load(index) : nil) else {
      return Qcow2Piece(kind: mayWait ? .failed : .notLoaded, count: inTable)
    }
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
    let isOwn = entry & Self.ownBits == Self.ownBits & ~Self.compressedBit
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

  /// The words of an entry in a table.
  @inline(__always)
  private func words(_ table: UnsafeRawPointer, _ offset: UInt64) -> (entry: UInt64, bitmap: UInt64) {
    let cell = unsafe UnsafeMutableRawPointer(mutating: table) + geometry.level2Index(offset) * geometry.entryBytes
    let entry = unsafe UInt64(bigEndian: SharedCell<UInt64>(cell).loadRelaxed())
    let bitmap = unsafe geometry.isExtended ? UInt64(bigEndian: SharedCell<UInt64>(cell + 8).loadRelaxed()) : 0
    return (entry, bitmap)
  }

  // MARK: Tables

  /// The offset of an L2 table; 0: there is none.
  @inline(__always)
  private func place(_ index: Int) -> UInt64 {
    guard let places else { return level1[index] }
    // Acquire: a reader of the offset also sees a table that was never read from the file.
    return unsafe SharedCell<UInt64>(places.base + index * 8).loadAcquire()
  }

  private func cell(_ index: Int) -> SharedCell<UInt64>? { tables.map { unsafe SharedCell($0.base + index * 8) } }

  /// Acquire: a reader of the address sees the table.
  @inline(__always)
  private func table(_ index: Int) -> UnsafeMutableRawPointer? {
    guard let address = cell(index)?.loadAcquire(), address != 0 else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: UInt(address))
  }

  /// Reads a table. - Returns: `nil` if it cannot be read; the next lookup tries again.
  private func load(_ index: Int) -> UnsafeMutableRawPointer? {
    let address: UInt = loading.withLock { _ in
      if let table = unsafe table(index) { return UInt(bitPattern: table) }
      let size = Int(geometry.clusterSize)
      let table = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 16)
      guard let source = try? FileSource(file.rawValue), let count = try? unsafe source.read(at: place(index), into: table),
        // The file is shorter than when it was opened: it was truncated, and the missing part was not zeroes.
        UInt64(count) >= min(UInt64(size), fileEnd &- min(fileEnd, place(index))),
        unsafe isSound(UnsafeRawBufferPointer(rebasing: table[..<count]))
      else {
        unsafe table.deallocate()
        return 0
      }
      if let blank, unsafe memcmp(table.baseAddress!, blank.base, count) == 0 {
        unsafe table.deallocate()
        let address = UInt(bitPattern: unsafe blank.base)
        cell(index)?.storeRelease(UInt64(address))
        return address
      }
      // A table at the end of the file may be incomplete: the missing part is zeroes, as in a hole.
      unsafe table[count...].initializeMemory(as: UInt8.self, repeating: 0)
      // Release: the bytes of the table are stored before its address.
      let address = UInt(bitPattern: table.baseAddress)
      cell(index)?.storeRelease(UInt64(address))
      return address
    }
    return unsafe UnsafeMutableRawPointer(bitPattern: address)
  }

  // MARK: Writing

  /// For an image that is written to: no entry of a table in the file may refer to metadata, or beyond the end of the file.
  /// Otherwise a write to the disk would overwrite tables, or clusters that were allocated since.
  ///
  /// - Parameter table: the table as it was read; its end may be missing.
  private func isSound(_ table: UnsafeRawBufferPointer) -> Bool {
    guard changes != nil, let entries else { return true }
    let isSound = unsafe isSound(table, entries)
    if !isSound { contradicted.store(true, ordering: .relaxed) }
    return isSound
  }

  /// The image was found to contradict itself, and is written to.
  var contradictsItself: Bool { contradicted.load(ordering: .relaxed) }

  private func isSound(_ table: UnsafeRawBufferPointer, _ entries: Qcow2Entries) -> Bool {
    let size = geometry.entryBytes
    // Neighbouring clusters are usually close together: an offset is looked up only if it is outside the last one's gap between
    // metadata.
    var gap: Range<UInt64> = 0..<0
    for start in stride(from: 0, through: table.count - size, by: size) {
      let entry = unsafe UInt64(bigEndian: table.load(fromByteOffset: start, as: UInt64.self))
      let bitmap = unsafe size == 16 ? UInt64(bigEndian: table.load(fromByteOffset: start + 8, as: UInt64.self)) : 0
      if entry == 0, bitmap == 0 { continue }
      guard let cluster = try? entries.level2(entry, bitmap: bitmap) else { return false }
      switch cluster {
      case .unallocated, .zero(nil), .compressed, .subclusters(nil, _, _): continue
      case .data(let place), .zero(let place?), .subclusters(let place?, _, _):
        let number = place >> UInt64(geometry.clusterBits)
        if !gap.contains(number) { gap = gapInMetadata(around: number) }
        guard place < fixed.end, gap.contains(number) else { return false }
      }
    }
    return true
  }

  /// The range of clusters around this one without metadata; empty if this one has metadata.
  private func gapInMetadata(around number: UInt64) -> Range<UInt64> {
    // The first cluster of metadata that is not before it.
    var places = 0..<fixed.metadata.count
    while !places.isEmpty {
      let middle = places.lowerBound + places.count / 2
      places = fixed.metadata[middle] < number ? middle + 1..<places.upperBound : places.lowerBound..<middle
    }
    let next = places.lowerBound
    let end = next < fixed.metadata.count ? fixed.metadata[next] : .max
    return end == number ? number..<number : (next > 0 ? fixed.metadata[next - 1] + 1 : 0)..<end
  }

  /// The entry of a cluster, for the writer, which may change it.
  /// - Returns: `nil` if a table cannot be read, or contradicts itself.
  func entry(at offset: UInt64) -> ClusterEntry? {
    guard let entries else { return nil }
    let index = geometry.level1Index(offset)
    guard place(index) != 0 else { return try? ClusterEntry(0, 0, entries) }
    guard let table = unsafe table(index) ?? load(index) else { return nil }
    let (entry, bitmap) = unsafe words(table, offset)
    return try? ClusterEntry(entry, bitmap, entries)
  }

  /// Whether a write at an offset neither reads a table nor waits until data is stable. A hint: the entry may change meanwhile.
  ///
  /// - Parameter firstEnd: of the file when it was opened, bytes: clusters beyond it are holes where nothing was written.
  func isWrittenAtOnce(at offset: UInt64, firstEnd: UInt64) -> Bool {
    guard let entries else { return false }
    let index = geometry.level1Index(offset)
    guard place(index) != 0 else { return true }
    guard let table = unsafe table(index) else { return false }
    let (entry, bitmap) = unsafe words(table, offset)
    guard let cluster = try? entries.level2(entry, bitmap: bitmap) else { return false }
    switch cluster {
    case .unallocated, .zero(nil), .subclusters(nil, _, _): return true
    case .data: return entry & Self.ownBits == Self.ownBits & ~Self.compressedBit
    case .zero(let place?): return place >= firstEnd
    case .subclusters(let place?, let data, _):
      return place >= firstEnd || data >> UInt32(geometry.inCluster(offset) / geometry.subclusterSize) & 1 != 0
    case .compressed: return false
    }
  }

  /// Whether an L2 table of the file could be read.
  func hasTable(_ index: Int) -> Bool { unsafe (table(index) ?? load(index)) != nil }

  /// The bytes of an L2 table; `nil` if it cannot be read.
  func tableBytes(_ index: Int) -> [UInt8]? {
    guard let table = unsafe table(index) ?? load(index) else { return nil }
    return unsafe Array(UnsafeRawBufferPointer(start: table, count: Int(geometry.clusterSize)))
  }

  /// Sets the new offset of an L2 table, or that of a new table without entries. One thread at a time.
  func moveTable(_ index: Int, to place: UInt64) {
    guard let places else { return }
    if unsafe table(index) == nil, let blank { cell(index)?.storeRelease(UInt64(UInt(bitPattern: unsafe blank.base))) }
    // Release: the table is stored before its offset.
    unsafe SharedCell<UInt64>(places.base + index * 8).storeRelease(place)
  }

  /// Changes an entry of a table that has been read. One thread at a time.
  func change(at offset: UInt64, _ entry: UInt64, _ bitmap: UInt64) {
    guard let changes, let table = unsafe ownTable(geometry.level1Index(offset)) else { return }
    let place = unsafe table + geometry.level2Index(offset) * geometry.entryBytes
    changing.withLock { _ in
      let number = unsafe SharedCell<UInt64>(changes.base)
      let before = number.loadRelaxed()
      number.storeRelaxed(before &+ 1)
      // Full barrier: the number is odd before an entry changes.
      fullFence()
      unsafe SharedCell<UInt64>(place).storeRelaxed(entry.bigEndian)
      if geometry.isExtended { unsafe SharedCell<UInt64>(place + 8).storeRelaxed(bitmap.bigEndian) }
      // Release: both words are stored before the number is even again.
      number.storeRelease(before &+ 2)
    }
  }

  /// A table that can be changed, in place of the shared table of zeroes.
  private func ownTable(_ index: Int) -> UnsafeMutableRawPointer? {
    guard let table = unsafe table(index) else { return nil }
    guard let blank, unsafe table == blank.base else { return unsafe table }
    let size = Int(geometry.clusterSize)
    let own = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16)
    unsafe own.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    cell(index)?.storeRelease(UInt64(UInt(bitPattern: own)))
    return unsafe own
  }
}
