/// One image of a chain: an open file, and the mapping of its disk.
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Immutable except for the tables, which are read on first use. Any thread may read at any time: a table that has been read
/// stays at its address, and does not change unless the image is open for writing.
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
  /// `nil` if its library is not installed: then everything but compressed clusters can be read.
  let decompressor: Qcow2Decompressor?
  /// The tables that have been read: what a lookup needs.
  let map: Qcow2Map
  /// That of the map; only touched where used.
  private let memory: Mapping?
  /// That of the tables.
  private let tables: Qcow2TableMemory
  /// Held while an entry changes.
  private let changing = Mutex<Void>(())
  /// Clusters of metadata in ascending order, and the end of the file, when it was opened for writing: no data is in the
  /// former or beyond the latter.
  private let fixed: (metadata: [UInt64], end: UInt64)
  /// A table of zeroes: it represents every table that has only zeroes, of which a sparse file may have any number.
  private let blank: Mapping?
  /// Held while a table is read, so that it is read only once.
  private let loading = Mutex<Void>(())

  /// A raw file or block device.
  init(raw file: OwnedDescriptor, path: String, source: FileSource) {
    self.path = path
    self.file = file
    dataFile = file
    (dataEnd, fileEnd) = (source.byteCount, source.byteCount)
    (decompressor, memory, blank) = (nil, nil, nil)
    map = Qcow2Map(rawOf: source.byteCount)
    tables = Qcow2TableMemory(tableBytes: map.geometry.clusterSize)
    fixed = ([], 0)
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
    // Any image may have clusters compressed with zlib, and most have none: only an image that says zstd needs its library
    // to be opened.
    decompressor = header.compression == .zlib ? try? find(.zlib) : try find(header.compression)
    tables = Qcow2TableMemory(tableBytes: header.clusterSize)
    let found: Qcow2Snapshot? = if let snapshot { try header.snapshot(snapshot, source) } else { nil }
    let level1 = if let found { try header.level1(source, of: found) } else { try header.level1(source) }
    do throws(Errno) {
      let memory = try Mapping(anonymous: Qcow2Map.bytes(for: level1.count))
      self.memory = memory
      blank = try Mapping(anonymous: Int(header.clusterSize))
      map = Qcow2Map(
        memory, size: found?.diskSize ?? header.size, Qcow2Entries(header), isWritten: keeper != nil, count: level1.count)
    } catch { throw .cannotRead(error) }
    fixed = (keeper?.metadata.sorted() ?? [], keeper?.firstEnd ?? 0)
    for (index, place) in level1.enumerated() where place != 0 { map.position(index)?.storeRelaxed(place) }
  }

  /// The number of tables that take memory.
  var heldTables: Int { (0..<map.count).count { holdsMemory($0) } }

  private func holdsMemory(_ index: Int) -> Bool {
    guard let table = unsafe map.table(index) else { return false }
    return unsafe table != blank?.base
  }

  /// Size of a cluster, bytes.
  var clusterSize: UInt64 { geometry.clusterSize }

  /// Bytes of the disk.
  var size: UInt64 { map.size }
  var geometry: Qcow2Geometry { map.geometry }
  /// How its tables are decoded; `nil`: a raw disk.
  var entries: Qcow2Entries? { map.entries }

  // MARK: Lookup

  /// - Parameters:
  ///   - offset: of the disk, bytes.
  ///   - limit: how many bytes are of interest; at least 1.
  ///   - mayWait: missing tables are read.
  func look(at offset: UInt64, limit: UInt64, mayWait: Bool) -> Qcow2Piece {
    let piece = look(at: offset, limit: limit)
    guard piece.kind == .notLoaded, mayWait else { return piece }
    guard unsafe load(geometry.level1Index(offset)) != nil else { return Qcow2Piece(kind: .failed, count: piece.count) }
    return look(at: offset, limit: limit)
  }

  private func look(at offset: UInt64, limit: UInt64) -> Qcow2Piece {
    map.look(at: offset, limit: limit) ?? changing.withLock { _ in map.lookOnce(at: offset, limit: limit) }
  }

  // MARK: Tables

  /// Reads a table. - Returns: `nil` if it cannot be read; the next lookup tries again.
  private func load(_ index: Int) -> UnsafeMutableRawPointer? {
    let address: UInt = loading.withLock { _ in
      if let table = unsafe map.table(index) { return UInt(bitPattern: table) }
      let table = unsafe tables.take()
      guard let source = try? FileSource(file.rawValue), let count = try? unsafe source.read(at: map.place(index), into: table),
        // The file is shorter than when it was opened: it was truncated, and the missing part was not zeroes.
        UInt64(count) >= min(UInt64(table.count), fileEnd &- min(fileEnd, map.place(index))),
        unsafe isSound(UnsafeRawBufferPointer(rebasing: table[..<count]))
      else {
        unsafe tables.giveBack(table)
        return 0
      }
      if let blank, unsafe memcmp(table.baseAddress!, blank.base, count) == 0 {
        unsafe tables.giveBack(table)
        let address = UInt(bitPattern: unsafe blank.base)
        map.address(index)?.storeRelease(UInt64(address))
        return address
      }
      // A table at the end of the file may be incomplete: the missing part is zeroes, as in a hole.
      unsafe table[count...].initializeMemory(as: UInt8.self, repeating: 0)
      // Release: the bytes of the table are stored before its address.
      let address = UInt(bitPattern: table.baseAddress)
      map.address(index)?.storeRelease(UInt64(address))
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
    guard map.isWritten, let entries else { return true }
    let isSound = unsafe isSound(table, entries)
    if !isSound { map.contradiction?.storeRelaxed(1) }
    return isSound
  }

  /// The image was found to contradict itself, and is written to.
  var contradictsItself: Bool { map.contradictsItself }

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
    guard map.place(index) != 0 else { return try? ClusterEntry(0, 0, entries) }
    guard let table = unsafe map.table(index) ?? load(index) else { return nil }
    let (entry, bitmap) = unsafe map.words(table, offset)
    return try? ClusterEntry(entry, bitmap, entries)
  }

  /// Whether a write at an offset neither reads a table nor waits until data is stable. A hint: the entry may change meanwhile.
  ///
  /// - Parameter firstEnd: of the file when it was opened, bytes: clusters beyond it are holes where nothing was written.
  func isWrittenAtOnce(at offset: UInt64, firstEnd: UInt64) -> Bool {
    guard let entries else { return false }
    let index = geometry.level1Index(offset)
    guard map.place(index) != 0 else { return true }
    guard let table = unsafe map.table(index) else { return false }
    let (entry, bitmap) = unsafe map.words(table, offset)
    guard let cluster = try? entries.level2(entry, bitmap: bitmap) else { return false }
    switch cluster {
    case .unallocated, .zero(nil), .subclusters(nil, _, _): return true
    case .data: return Qcow2Map.isOwn(entry)
    case .zero(let place?): return place >= firstEnd
    case .subclusters(let place?, let data, _):
      return place >= firstEnd || data >> UInt32(geometry.inCluster(offset) / geometry.subclusterSize) & 1 != 0
    case .compressed: return false
    }
  }

  /// Whether an L2 table of the file could be read.
  func hasTable(_ index: Int) -> Bool { unsafe (map.table(index) ?? load(index)) != nil }

  /// The bytes of an L2 table; `nil` if it cannot be read.
  func tableBytes(_ index: Int) -> [UInt8]? {
    guard let table = unsafe map.table(index) ?? load(index) else { return nil }
    return unsafe Array(UnsafeRawBufferPointer(start: table, count: Int(geometry.clusterSize)))
  }

  /// Sets the new offset of an L2 table, or that of a new table without entries. One thread at a time.
  func moveTable(_ index: Int, to place: UInt64) {
    guard map.isWritten else { return }
    if unsafe map.table(index) == nil, let blank {
      map.address(index)?.storeRelease(UInt64(UInt(bitPattern: unsafe blank.base)))
    }
    // Release: the table is stored before its offset.
    map.position(index)?.storeRelease(place)
  }

  /// Changes an entry of a table that has been read. One thread at a time.
  func change(at offset: UInt64, _ entry: UInt64, _ bitmap: UInt64) {
    guard map.isWritten, let number = map.number, let table = unsafe ownTable(geometry.level1Index(offset)) else {
      return
    }
    let place = unsafe table + geometry.level2Index(offset) * geometry.entryBytes
    changing.withLock { _ in
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
    guard let table = unsafe map.table(index) else { return nil }
    guard let blank, unsafe table == blank.base else { return unsafe table }
    let own = unsafe tables.take()
    unsafe own.initializeMemory(as: UInt8.self, repeating: 0)
    map.address(index)?.storeRelease(UInt64(UInt(bitPattern: own.baseAddress)))
    return own.baseAddress
  }
}
