/// The validated header of an image.
internal import VirtioCore

public enum Qcow2Compression: UInt8, Sendable, CaseIterable {
  case zlib = 0
  case zstd = 1
}

public struct Qcow2Header: Hashable, Sendable {
  public static let magic: UInt32 = 0x5146_49fb

  /// Bits that a reader has to understand (v3).
  public struct Incompatible: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    /// Refcounts may be wrong (dirty).
    public static let dirty = Self(rawValue: 1 << 0)
    public static let corrupt = Self(rawValue: 1 << 1)
    public static let dataFile = Self(rawValue: 1 << 2)
    public static let compression = Self(rawValue: 1 << 3)
    public static let extendedLevel2 = Self(rawValue: 1 << 4)
    static let known: Self = [.dirty, .corrupt, .dataFile, .compression, .extendedLevel2]
  }

  /// 2 or 3.
  public var version: UInt32
  public var geometry: Qcow2Geometry
  /// Bytes of the disk.
  public var size: UInt64
  public var incompatible: Incompatible
  public var hasLazyRefcounts: Bool
  public var autoclear: UInt64
  /// A refcount has 2^this bits; 0 … 6.
  public var refcountOrder: UInt32
  public var compression: Qcow2Compression
  /// Bytes.
  public var headerLength: UInt32
  public var level1Offset: UInt64
  public var level1Entries: UInt64
  public var refcountTableOffset: UInt64
  public var refcountTableClusters: UInt32
  public var snapshotCount: UInt32
  public var snapshotOffset: UInt64
  /// The bytes in the header, which may be any.
  public var backingName: [UInt8]?
  public var backingFormat: String?
  public var dataFileName: [UInt8]?
  public var bitmaps: Qcow2Bitmaps?

  public var clusterSize: UInt64 { geometry.clusterSize }
  public var hasDataFile: Bool { incompatible.contains(.dataFile) }
  /// The data file is a raw disk.
  public var isDataFileRaw: Bool { hasDataFile && autoclear & 2 != 0 }
  /// The name as text, for display.
  public var backingText: String? { backingName.map { String(decoding: $0, as: UTF8.self) } }
  public var dataFileText: String? { dataFileName.map { String(decoding: $0, as: UTF8.self) } }

  /// Reads and validates a header. Nothing that it points at is read.
  public init(_ source: some ImageSource) throws(Qcow2Fault) {
    let length = source.byteCount
    let start: [UInt8]
    do { start = try source.read(at: 0, count: 112) } catch { throw .cannotRead(error) }
    guard start.count >= 4, start.word32(0) == Self.magic else { throw .notQcow2 }
    guard start.count >= 72 else { throw .tooShort(bytes: length) }
    version = start.word32(4)
    guard version == 2 || version == 3 else { throw .version(version) }
    guard version == 2 || start.count >= 104 else { throw .tooShort(bytes: length) }
    let bits = start.word32(20)
    guard (9...21).contains(bits) else { throw .clusterBits(bits) }
    headerLength = version == 2 ? 72 : start.word32(100)
    guard version == 2 || headerLength >= 104 && headerLength % 8 == 0 && UInt64(headerLength) <= 1 << UInt64(bits) else {
      throw .headerLength(headerLength)
    }
    guard UInt64(headerLength) <= length else { throw .tooShort(bytes: length) }

    incompatible = version == 2 ? [] : Incompatible(rawValue: start.word64(72))
    hasLazyRefcounts = version == 3 && start.word64(80) & 1 != 0
    autoclear = version == 2 ? 0 : start.word64(88)
    refcountOrder = version == 2 ? 4 : start.word32(96)
    geometry = Qcow2Geometry(clusterBits: bits, isExtended: incompatible.contains(.extendedLevel2))
    size = start.word64(24)
    level1Entries = UInt64(start.word32(36))
    level1Offset = start.word64(40)
    refcountTableOffset = start.word64(48)
    refcountTableClusters = start.word32(56)
    snapshotCount = start.word32(60)
    snapshotOffset = start.word64(64)

    // The feature names are in an extension, so extensions are read first.
    let clusterSize = geometry.clusterSize
    let backing = (offset: start.word64(8), length: start.word32(16))
    var end = min(clusterSize, length)
    if backing.offset != 0 {
      guard backing.length > 0, backing.length <= Qcow2Limits.name, backing.offset >= UInt64(headerLength),
        backing.offset <= clusterSize - min(UInt64(backing.length), clusterSize)
      else { throw .backingName }
      backingName = try source.need(.header, at: backing.offset, count: Int(backing.length))
      guard backingName?.contains(0) == false else { throw .backingName }
      end = min(end, backing.offset)
    }
    let first = try source.need(.header, at: 0, count: Int(end))
    let extensions = try Qcow2Extensions(first, from: Int(headerLength))
    let unknown = incompatible.subtracting(.known)
    guard unknown.isEmpty else {
      throw .unknownFeatures(unknown.rawValue, names: extensions.names(ofIncompatible: unknown.rawValue))
    }
    backingFormat = extensions.backingFormat
    dataFileName = extensions.dataFileName
    bitmaps = extensions.bitmaps
    if autoclear & 1 == 0 || version == 2 { bitmaps = nil }

    let method = start.word32(32)
    guard method == 0 else { throw .encrypted(method) }
    let type = version == 3 && headerLength > 104 && start.count > 104 ? start[104] : 0
    guard let compression = Qcow2Compression(rawValue: type) else { throw .compressionType(type) }
    self.compression = compression
    guard (type != 0) == incompatible.contains(.compression) else { throw .compressionBit }
    guard !geometry.isExtended || bits >= 14 else { throw .smallClustersForSubclusters(bits) }
    guard refcountOrder <= 6 else { throw .refcountOrder(refcountOrder) }
    try checkPlaces(length)
  }

  /// Everything that the header points at is inside the file, starts at a cluster, and overlaps nothing else.
  private func checkPlaces(_ length: UInt64) throws(Qcow2Fault) {
    guard size < 1 << 63 else { throw .diskTooLarge(size) }
    guard level1Entries <= Qcow2Limits.level1Entries else { throw .level1TooLarge(entries: level1Entries) }
    let needed = geometry.level1Entries(for: size)
    guard needed <= Qcow2Limits.level1Entries else { throw .diskTooLarge(size) }
    guard level1Entries >= needed else { throw .level1TooSmall(entries: level1Entries, needed: needed) }
    guard refcountTableClusters > 0 else { throw .noRefcountTable }
    guard UInt64(refcountTableClusters) * clusterSize <= Qcow2Limits.refcountTable else {
      throw .refcountTableTooLarge(clusters: refcountTableClusters)
    }
    guard snapshotCount <= Qcow2Limits.snapshots else { throw .tooManySnapshots(snapshotCount) }

    var places: [(part: Qcow2Fault.Part, range: Range<UInt64>)] = [(.header, 0..<clusterSize)]
    func add(_ part: Qcow2Fault.Part, _ offset: UInt64, bytes: UInt64) throws(Qcow2Fault) {
      guard bytes > 0 else { return }
      guard geometry.inCluster(offset) == 0 else { throw .misplaced(part, offset: offset) }
      // The file may end inside the last cluster of a table, but not inside the table.
      guard offset < Qcow2Limits.offset, bytes <= length, offset <= length - bytes else { throw .pastEnd(part, offset: offset) }
      let range = offset..<offset + bytes
      if let other = places.first(where: { $0.range.overlaps(range) }) { throw .overlap(other.part, part) }
      places.append((part, range))
    }
    try add(.level1, level1Offset, bytes: level1Entries * 8)
    try add(.refcountTable, refcountTableOffset, bytes: UInt64(refcountTableClusters) * clusterSize)
    // Every entry has at least 40 bytes.
    try add(.snapshotTable, snapshotOffset, bytes: UInt64(snapshotCount) * 40)
    if let bitmaps {
      guard bitmaps.count <= Qcow2Limits.bitmaps, bitmaps.directorySize <= 64 << 20 else {
        throw .badExtension(type: Qcow2Extensions.Kind.bitmaps.rawValue)
      }
      try add(.bitmaps, bitmaps.directoryOffset, bytes: bitmaps.directorySize)
    }
  }
}
