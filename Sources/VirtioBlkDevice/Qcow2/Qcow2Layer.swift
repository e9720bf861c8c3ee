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
  /// Bytes of the disk for which that is so; at least 1.
  var count: UInt64
}

/// Immutable but for the tables that are read when they are needed first. Every thread may look at any time: a table that is there
/// stays where it is and as it is, since nobody writes to the image while it is open.
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
  private let entries: Qcow2Entries?
  /// `nil` where its library is not installed: then compressed clusters cannot be read, and all others can.
  let decompressor: Qcow2Decompressor?
  /// Where the L2 tables are in the file; 0: there is none.
  private let level1: [UInt64]
  /// Addresses of those that were read, each set once; only touched where used.
  private let tables: Mapping?
  /// Zeroes, as large as a table: it stands for every table that has nothing else, of which a sparse file may have any number.
  private let blank: Mapping?
  private let geometry: Qcow2Geometry
  /// Held while a table is read, so that it is read once.
  private let loading = Mutex<Void>(())

  /// A raw file or block device.
  init(raw file: OwnedDescriptor, path: String, source: FileSource) {
    self.path = path
    self.file = file
    dataFile = file
    (dataEnd, fileEnd, size) = (source.byteCount, source.byteCount, source.byteCount)
    (entries, decompressor) = (nil, nil)
    (level1, tables, blank) = ([], nil, nil)
    geometry = Qcow2Geometry(clusterBits: 16, isExtended: false)
  }

  /// - Parameters:
  ///   - data: its external data file, if it has one.
  ///   - snapshot: of its internal ones; `nil`: the disk as it is.
  ///   - find: the library that decompresses. It is asked for here, because a process in its sandbox loads nothing.
  init(
    _ header: Qcow2Header, _ file: OwnedDescriptor, path: String, source: FileSource, data: (OwnedDescriptor, FileSource)?,
    snapshot: String?, find: (Qcow2Compression) throws(Qcow2Fault) -> Qcow2Decompressor = Qcow2Decompressor.find
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
    } catch { throw .cannotRead(error) }
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
    // Past the end of an image that others are over there are zeroes.
    guard offset < size else { return Qcow2Piece(kind: .zero, count: limit) }
    let limit = min(limit, size &- offset)
    guard let entries else { return Qcow2Piece(kind: .data(offset), count: limit) }
    let index = geometry.level1Index(offset)
    let inTable = min(limit, geometry.level2Span &- offset % geometry.level2Span)
    guard level1[index] != 0 else { return Qcow2Piece(kind: .absent, count: inTable) }
    guard let table = unsafe table(index) ?? (mayWait ? load(index) : nil) else {
      return Qcow2Piece(kind: mayWait ? .failed : .notLoaded, count: inTable)
    }
    var piece = unsafe unit(table, entries, offset)
    // What follows it on the disk and in the file, too, goes along.
    while piece.count < inTable {
      let next = unsafe unit(table, entries, offset &+ piece.count)
      switch (piece.kind, next.kind) {
      case (.absent, .absent), (.zero, .zero): break
      case (.data(let place), .data(let other)) where place &+ piece.count == other: break
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
    let place = geometry.level2Index(offset) * geometry.entryBytes
    let entry = UInt64(bigEndian: unsafe table.load(fromByteOffset: place, as: UInt64.self))
    let bitmap = geometry.isExtended ? UInt64(bigEndian: unsafe table.load(fromByteOffset: place + 8, as: UInt64.self)) : 0
    let inside = geometry.inCluster(offset)
    let rest = geometry.clusterSize &- inside
    let cluster: Qcow2Cluster
    do throws(Qcow2Fault) { cluster = try entries.level2(entry, bitmap: bitmap) } catch {
      return Qcow2Piece(kind: .failed, count: rest)
    }
    switch cluster {
    case .unallocated: return Qcow2Piece(kind: .absent, count: rest)
    case .zero: return Qcow2Piece(kind: .zero, count: rest)
    case .data(let host): return Qcow2Piece(kind: .data(host &+ inside), count: rest)
    case .compressed(let host, let count): return Qcow2Piece(kind: .compressed(offset: host, count: count), count: rest)
    case .subclusters(let host, let data, let zero):
      let first = UInt32(truncatingIfNeeded: inside / geometry.subclusterSize)
      let bit: UInt32 = 1 << first
      let alike = data & bit != 0 ? data : zero & bit != 0 ? zero : ~(data | zero)
      // Subclusters from here on that are like the first one; beyond the last there are none.
      let run = UInt64((~(alike >> first)).trailingZeroBitCount)
      let end = (UInt64(first) &+ min(run, UInt64(32 - first))) &* geometry.subclusterSize
      let kind: Qcow2Piece.Kind = data & bit != 0 ? .data((host ?? 0) &+ inside) : zero & bit != 0 ? .zero : .absent
      return Qcow2Piece(kind: kind, count: end &- inside)
    }
  }

  // MARK: Tables

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
      guard let source = try? FileSource(file.rawValue), let bytes = try? source.read(at: level1[index], count: size),
        // Less than there was when the image was opened: it has been cut, and what was there is not zeroes.
        UInt64(bytes.count) >= min(UInt64(size), fileEnd &- level1[index])
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
}
