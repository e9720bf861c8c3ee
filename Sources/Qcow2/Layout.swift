/// The layout of a new image, and its bytes.

/// An image of version 3 without data clusters.
public struct Qcow2Layout: Hashable, Sendable {
  /// Bytes of the disk.
  public var size: UInt64
  public var geometry: Qcow2Geometry
  public var backingName: [UInt8]?
  /// The format, such as "raw"; only together with a name.
  public var backingFormat: String?

  /// - Parameter size: bytes; below 2^63.
  /// - Throws: why such an image is impossible.
  public init(
    size: UInt64, geometry: Qcow2Geometry, backingName: [UInt8]? = nil, backingFormat: String? = nil
  ) throws(Qcow2Fault) {
    (self.size, self.geometry) = (size, geometry)
    (self.backingName, self.backingFormat) = (backingName, backingFormat)
    guard (9...21).contains(geometry.clusterBits) else { throw .clusterBits(geometry.clusterBits) }
    guard !geometry.isExtended || geometry.clusterBits >= 14 else {
      throw .smallClustersForSubclusters(geometry.clusterBits)
    }
    guard size < 1 << 63, geometry.level1Entries(for: size) <= Qcow2Limits.level1Entries else { throw .diskTooLarge(size) }
    if let backingName {
      guard (1...Qcow2Limits.name).contains(backingName.count), !backingName.contains(0),
        UInt64(headerBytes.count) <= geometry.clusterSize
      else { throw .backingName }
    }
  }

  /// Clusters of each part, in their order in the file: header, refcount table, refcount blocks, L1 table.
  private struct Plan {
    var table: UInt64 = 1
    var blocks: UInt64 = 1
    var level1: UInt64
    var total: UInt64 { 1 + table + blocks + level1 }
  }

  private var plan: Plan {
    let cluster = geometry.clusterSize
    func clusters(_ bytes: UInt64) -> UInt64 { (bytes + cluster - 1) / cluster }
    var plan = Plan(level1: clusters(geometry.level1Entries(for: size) * 8))
    // Refcount blocks need refcounts themselves: each round adds what the previous one lacked, and few rounds are needed.
    while true {
      let blocks = (plan.total * 2 + cluster - 1) / cluster
      let table = clusters(blocks * 8)
      if blocks <= plan.blocks, table <= plan.table { return plan }
      plan.blocks = max(plan.blocks, blocks)
      plan.table = max(plan.table, table)
    }
  }

  private static func pad(_ bytes: inout [UInt8]) { bytes += [UInt8](repeating: 0, count: -bytes.count & 7) }

  /// The header with its extensions and the backing file's name.
  private var headerBytes: [UInt8] {
    let plan = plan
    var bytes = [UInt8](repeating: 0, count: 104)
    bytes.put32(Qcow2Header.magic, at: 0)
    bytes.put32(3, at: 4)
    bytes.put32(geometry.clusterBits, at: 20)
    bytes.put64(size, at: 24)
    bytes.put32(UInt32(geometry.level1Entries(for: size)), at: 36)
    // An empty disk has no L1 table.
    if plan.level1 > 0 { bytes.put64((1 + plan.table + plan.blocks) * geometry.clusterSize, at: 40) }
    bytes.put64(geometry.clusterSize, at: 48)
    bytes.put32(UInt32(plan.table), at: 56)
    let incompatible: Qcow2Header.Incompatible = geometry.isExtended ? [.extendedLevel2] : []
    bytes.put64(incompatible.rawValue, at: 72)
    bytes.put32(4, at: 96)
    bytes.put32(104, at: 100)
    func add(_ kind: Qcow2Extensions.Kind, _ data: [UInt8]) {
      var head = [UInt8](repeating: 0, count: 8)
      head.put32(kind.rawValue, at: 0)
      head.put32(UInt32(data.count), at: 4)
      bytes += head + data
      Self.pad(&bytes)
    }
    if let backingFormat, backingName != nil { add(.backingFormat, Array(backingFormat.utf8)) }
    // A cluster of 512 bytes has no room for them beside a long name.
    if geometry.clusterBits > 10 { add(.featureNames, Self.featureNames) }
    add(.end, [])
    if let backingName {
      bytes.put64(UInt64(bytes.count), at: 8)
      bytes.put32(UInt32(backingName.count), at: 16)
      bytes += backingName
    }
    return bytes
  }

  /// The names of features, for programs that do not know a feature and have to report it.
  private static let featureNames: [UInt8] = {
    let names: [(kind: UInt8, bit: UInt8, name: String)] = [
      (0, 0, "dirty bit"), (0, 1, "corrupt bit"), (0, 2, "external data file"), (0, 3, "compression type"),
      (0, 4, "extended L2 entries"), (1, 0, "lazy refcounts"), (2, 0, "bitmaps"), (2, 1, "raw external data"),
    ]
    return names.flatMap { [$0.kind, $0.bit] + Array($0.name.utf8) + [UInt8](repeating: 0, count: 46 - $0.name.utf8.count) }
  }()

  /// Bytes of the file.
  public var fileSize: UInt64 { plan.total * geometry.clusterSize }

  /// The contents of the file; the rest is zeroes.
  public var pieces: [(offset: UInt64, bytes: [UInt8])] {
    let (plan, cluster) = (plan, geometry.clusterSize)
    var table = [UInt8](repeating: 0, count: Int(plan.blocks) * 8)
    for block in 0..<plan.blocks { table.put64((1 + plan.table + block) * cluster, at: Int(block) * 8) }
    var counts = [UInt8](repeating: 0, count: Int(plan.total) * 2)
    for index in 0..<Int(plan.total) { counts.put16(1, at: index * 2) }
    return [(0, headerBytes), (cluster, table), ((1 + plan.table) * cluster, counts)]
  }
}
