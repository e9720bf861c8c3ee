/// One image of a chain: an open file, and where in it the bytes of its disk are.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// What is at a place of a disk, as far as one image says.
struct Qcow2Piece {
  enum Kind: Equatable {
    /// The image under this one has it.
    case absent
    case zero
    /// In the layer's data file.
    case data(UInt64)
    /// - Parameters:
    ///   - offset: in the layer's file, bytes.
    ///   - count: bytes that are read for it.
    case compressed(offset: UInt64, count: Int)
    /// A table has to be read first, which may wait.
    case notLoaded
    /// The image contradicts itself, or cannot be read.
    case failed
  }

  var kind: Kind
  /// Data whose place nobody else has: it may be written to where it is.
  var isOwn = false
  /// Bytes of the disk for which that is so; at least 1.
  var count: UInt64
}

/// Immutable but for the tables that are read when they are needed first. Every thread may look at any time: a table that is there
/// stays where it is, and as it is, too, where nobody writes to the image while it is open.
///
/// Of an image that is written to, entries change one at a time, and who looks sees them as they were before or after a change: a number
/// goes up before and after each. What an entry pointed at stays where it is and as it is for as long as the image is open, so that who
/// looked before a change may still read there.
@safe
final class Qcow2Layer: @unchecked Sendable {
  let path: String
  let file: OwnedDescriptor
  /// Where data is: `file`, or the external data file.
  let dataFile: OwnedDescriptor
  /// Bytes of the data file when it was opened.
  let dataEnd: UInt64
  /// Bytes of `file` when it was opened.
  private let fileEnd: UInt64
  /// Bytes of the disk.
  let size: UInt64
  /// How its tables are read; `nil`: a raw disk.
  let entries: Qcow2Entries?
  /// `nil` where its library is not installed: then compressed clusters cannot be read, and all others can.
  let decompressor: Qcow2Decompressor?
  /// Where the L2 tables are in the file; 0: there is none. Of an image that is written to those of when it was opened.
  private let level1: [UInt64]
  /// Where they are now: words that only go from 0 to a place, or from place to place. `nil`: nobody writes to the image.
  private let places: Mapping?
  /// What is changed when an entry is: odd while that is being done.
  private let changes: Mapping?
  private let changing = Mutex<Void>(())
  /// A table of it was refused for what it says.
  private let contradicted = Atomic<Bool>(false)
  /// Clusters of metadata, and where the file ended, when it was opened to be written to: data is in neither.
  private let fixed: (metadata: Set<UInt64>, end: UInt64)
  /// Addresses of those that were read, each set once; only touched where used.
  private let tables: Mapping?
  /// Zeroes, as large as a table: it stands for every table that has nothing else, of which a sparse file may have any number.
  private let blank: Mapping?
  let geometry: Qcow2Geometry
  /// Held while a table is read, so that it is read once.
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
  ///   - snapshot: of its internal ones; `nil`: the disk as it is.
  ///   - keeper: of an image that is to be written to.
  ///   - find: the library that decompresses. It is asked for here, because a process in its sandbox loads nothing.
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
    // Every image may have clusters that zlib compressed, and most have none: only one that says zstd needs its library to be opened.
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
    fixed = (keeper?.metadata ?? [], keeper?.firstEnd ?? 0)
    guard let places else { return }
    for (index, place) in level1.enumerated() { unsafe SharedCell<UInt64>(places.base + index * 8).storeRelaxed(place) }
  }

  deinit {
    for index in level1.indices where holdsMemory(index) { if let table = unsafe table(index) { unsafe table.deallocate() } }
  }

  /// Tables that were read and take memory.
  var heldTables: Int { level1.indices.count { holdsMemory($0) } }

  private func holdsMemory(_ index: Int) -> Bool {
    guard let table = unsafe table(index) else { return false }
    return unsafe table != blank?.base
  }

  /// Bytes of a cluster.
  var clusterSize: UInt64 { geometry.clusterSize }

  // MARK: Looking

  /// - Parameters:
  ///   - offset: of the disk, bytes.
  ///   - limit: bytes that are asked for; at least 1.
  ///   - mayWait: tables that are not there are read.
  func look(at offset: UInt64, limit: UInt64, mayWait: Bool) -> Qcow2Piece {
    guard let changes else { return lookOnce(at: offset, limit: limit, mayWait: mayWait) }
    let number = unsafe SharedCell<UInt64>(changes.base)
    for _ in 0..<Self.looks {
      // Acquire: entries are looked at after the number, and once more it after them.
      let before = number.loadAcquire()
      guard before & 1 == 0 else { continue }
      let piece = lookOnce(at: offset, limit: limit, mayWait: mayWait)
      if number.loadAfterLoads() == before { return piece }
    }
    return changing.withLock { _ in lookOnce(at: offset, limit: limit, mayWait: mayWait) }
  }

  /// Times that are looked before the one who changes something is waited for.
  private static let looks = 16

  private func lookOnce(at offset: UInt64, limit: UInt64, mayWait: Bool) -> Qcow2Piece {
    // Past the end of an image that others are over there are zeroes.
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
    // What follows it on the disk and in the file, too, goes along.
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

  /// What a table says of a place, as far as its cluster goes on in the same way.
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
      // Subclusters from here on that are like the first one; beyond the last there are none.
      let run = UInt64((~(alike >> first)).trailingZeroBitCount)
      let end = (UInt64(first) &+ min(run, UInt64(32 - first))) &* geometry.subclusterSize
      let kind: Qcow2Piece.Kind = data & bit != 0 ? .data((host ?? 0) &+ inside) : zero & bit != 0 ? .zero : .absent
      return Qcow2Piece(kind: kind, isOwn: isOwn && data & bit != 0, count: end &- inside)
    }
  }

  private static let compressedBit: UInt64 = 1 << 62
  private static let ownBits: UInt64 = 1 << 63 | compressedBit

  /// An entry as it is in a table.
  @inline(__always)
  private func words(_ table: UnsafeRawPointer, _ offset: UInt64) -> (entry: UInt64, bitmap: UInt64) {
    let cell = unsafe UnsafeMutableRawPointer(mutating: table) + geometry.level2Index(offset) * geometry.entryBytes
    let entry = unsafe UInt64(bigEndian: SharedCell<UInt64>(cell).loadRelaxed())
    let bitmap = unsafe geometry.isExtended ? UInt64(bigEndian: SharedCell<UInt64>(cell + 8).loadRelaxed()) : 0
    return (entry, bitmap)
  }

  // MARK: Tables

  /// Where an L2 table is in the file; 0: there is none.
  @inline(__always)
  private func place(_ index: Int) -> UInt64 {
    guard let places else { return level1[index] }
    // Acquire: who sees the place sees the table, if it has never been in the file.
    return unsafe SharedCell<UInt64>(places.base + index * 8).loadAcquire()
  }

  private func cell(_ index: Int) -> SharedCell<UInt64>? { tables.map { unsafe SharedCell($0.base + index * 8) } }

  /// Acquiring: who sees the address sees the table.
  @inline(__always)
  private func table(_ index: Int) -> UnsafeMutableRawPointer? {
    guard let address = cell(index)?.loadAcquire(), address != 0 else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: UInt(address))
  }

  /// Reads a table. - Returns: `nil` when it cannot be read; the next who looks tries again.
  private func load(_ index: Int) -> UnsafeMutableRawPointer? {
    let address: UInt = loading.withLock { _ in
      if let table = unsafe table(index) { return UInt(bitPattern: table) }
      let size = Int(geometry.clusterSize)
      guard let source = try? FileSource(file.rawValue), let bytes = try? source.read(at: place(index), count: size),
        // Less than there was when the image was opened: it has been cut, and what was there is not zeroes.
        UInt64(bytes.count) >= min(UInt64(size), fileEnd &- min(fileEnd, place(index))), isSound(bytes)
      else { return 0 }
      if let blank, isBlank(bytes, blank) {
        let address = UInt(bitPattern: unsafe blank.base)
        cell(index)?.storeRelease(UInt64(address))
        return address
      }
      let table = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16)
      // A table at the file's end may be cut there: what is missing is zeroes, as in a hole.
      unsafe table.initializeMemory(as: UInt8.self, repeating: 0, count: size)
      unsafe bytes.withUnsafeBytes { unsafe table.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
      // Releasing: the table's bytes are there before its address.
      cell(index)?.storeRelease(UInt64(UInt(bitPattern: table)))
      return UInt(bitPattern: table)
    }
    return unsafe UnsafeMutableRawPointer(bitPattern: address)
  }

  /// - Parameter blank: as many zeroes, or more.
  private func isBlank(_ bytes: [UInt8], _ blank: Mapping) -> Bool {
    unsafe bytes.withUnsafeBytes { bytes in
      guard let start = bytes.baseAddress else { return true }
      return unsafe memcmp(start, blank.base, bytes.count) == 0
    }
  }

  // MARK: Writing

  /// Of an image that is written to: no entry of a table of its file points at metadata, or past where the file ended. A write to such a
  /// place would be one to tables of the image, or to what was allocated since. - Parameter bytes: of a table as it was read.
  private func isSound(_ bytes: [UInt8]) -> Bool {
    guard changes != nil, let entries else { return true }
    let isSound = isSound(bytes, entries)
    if !isSound { contradicted.store(true, ordering: .relaxed) }
    return isSound
  }

  /// The image was found to contradict itself where it is written to.
  var contradictsItself: Bool { contradicted.load(ordering: .relaxed) }

  private func isSound(_ bytes: [UInt8], _ entries: Qcow2Entries) -> Bool {
    let size = geometry.entryBytes
    var start = 0
    while start + size <= bytes.count {
      defer { start += size }
      let (entry, bitmap) = (Self.word(bytes, start), size == 16 ? Self.word(bytes, start + 8) : 0)
      if entry == 0, bitmap == 0 { continue }
      guard let cluster = try? entries.level2(entry, bitmap: bitmap) else { return false }
      switch cluster {
      case .unallocated, .zero(nil), .compressed, .subclusters(nil, _, _): continue
      case .data(let place), .zero(let place?), .subclusters(let place?, _, _):
        guard place < fixed.end, !fixed.metadata.contains(place >> UInt64(geometry.clusterBits)) else { return false }
      }
    }
    return true
  }

  private static func word(_ bytes: [UInt8], _ start: Int) -> UInt64 {
    var word: UInt64 = 0
    for index in start..<start + 8 { word = word << 8 | UInt64(bytes[index]) }
    return word
  }

  /// What the image says of a cluster. For the one who may change it.
  /// - Returns: `nil` where a table cannot be read, or contradicts itself.
  func entry(at offset: UInt64) -> ClusterEntry? {
    guard let entries else { return nil }
    let index = geometry.level1Index(offset)
    guard place(index) != 0 else { return try? ClusterEntry(0, 0, entries) }
    guard let table = unsafe table(index) ?? load(index) else { return nil }
    let (entry, bitmap) = unsafe words(table, offset)
    return try? ClusterEntry(entry, bitmap, entries)
  }

  /// Whether an L2 table of the file could be read.
  func hasTable(_ index: Int) -> Bool { unsafe (table(index) ?? load(index)) != nil }

  /// The bytes of an L2 table; `nil` where it cannot be read.
  func tableBytes(_ index: Int) -> [UInt8]? {
    guard let table = unsafe table(index) ?? load(index) else { return nil }
    return unsafe Array(UnsafeRawBufferPointer(start: table, count: Int(geometry.clusterSize)))
  }

  /// An L2 table is at another place from now on, or is there for the first time and has nothing. By one thread at a time.
  func moveTable(_ index: Int, to place: UInt64) {
    guard let places else { return }
    if unsafe table(index) == nil, let blank { cell(index)?.storeRelease(UInt64(UInt(bitPattern: unsafe blank.base))) }
    // Release: the table is there before its place.
    unsafe SharedCell<UInt64>(places.base + index * 8).storeRelease(place)
  }

  /// Changes an entry of a table that is there. By one thread at a time.
  func change(at offset: UInt64, _ entry: UInt64, _ bitmap: UInt64) {
    guard let changes, let table = unsafe ownTable(geometry.level1Index(offset)) else { return }
    let place = unsafe table + geometry.level2Index(offset) * geometry.entryBytes
    changing.withLock { _ in
      let number = unsafe SharedCell<UInt64>(changes.base)
      let before = number.loadRelaxed()
      number.storeRelaxed(before &+ 1)
      // Full: the number is odd before an entry changes.
      fullFence()
      unsafe SharedCell<UInt64>(place).storeRelaxed(entry.bigEndian)
      if geometry.isExtended { unsafe SharedCell<UInt64>(place + 8).storeRelaxed(bitmap.bigEndian) }
      // Release: both words are there before the number is even.
      number.storeRelease(before &+ 2)
    }
  }

  /// A table that can be changed: not the one that stands for all that have nothing.
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
