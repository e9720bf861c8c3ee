/// The refcounts of an image.

/// Reads refcounts, a block at a time.
struct Qcow2Refcounts<Source: ImageSource> {
  private let source: Source
  private let header: Qcow2Header
  /// Offsets of the blocks; 0: there is no block, and its refcounts are 0.
  let blocks: [UInt64]
  private var current: (index: Int, bytes: [UInt8])?

  /// - Throws: the table cannot be read. Its entries are checked by the user of `blocks`.
  init(_ source: Source, _ header: Qcow2Header) throws(Qcow2Fault) {
    self.source = source
    self.header = header
    let bytes = try source.need(
      .refcountTable, at: header.refcountTableOffset, count: Int(header.refcountTableClusters) * Int(header.clusterSize))
    blocks = (0..<bytes.count / 8).map { bytes.word64($0 * 8) }
  }

  /// Refcounts per block.
  var perBlock: UInt64 { (header.clusterSize * 8) >> UInt64(header.refcountOrder) }

  /// Whether a block can be at this offset.
  static func isPlace(_ offset: UInt64, _ header: Qcow2Header, _ length: UInt64) -> Bool {
    offset != 0 && header.geometry.inCluster(offset) == 0 && offset < Qcow2Limits.offset && offset < length
  }

  /// - Parameter cluster: its number in the file.
  /// - Returns: 0 if there is no block, or none that can be read.
  mutating func count(_ cluster: UInt64) -> UInt64 {
    guard let bytes = block(Int(cluster / perBlock)) else { return 0 }
    return Self.entry(Int(cluster % perBlock), order: header.refcountOrder, bytes)
  }

  /// - Returns: the bytes of a block, zeroes if it cannot be read; `nil` if there is none.
  mutating func block(_ index: Int) -> [UInt8]? {
    guard index < blocks.count, Self.isPlace(blocks[index], header, source.byteCount) else { return nil }
    if let current, current.index == index { return current.bytes }
    var bytes = (try? source.read(at: blocks[index], count: Int(header.clusterSize))) ?? []
    bytes += [UInt8](repeating: 0, count: Int(header.clusterSize) - bytes.count)
    current = (index, bytes)
    return bytes
  }

  /// - Parameter order: 0 … 6: the logarithm of its width in bits. Within a byte the least significant bits come first.
  static func entry(_ index: Int, order: UInt32, _ bytes: [UInt8]) -> UInt64 {
    switch order {
    case 0, 1, 2:
      let bits = 1 << Int(order)
      let place = index * bits
      return UInt64(bytes[place / 8] >> UInt8(place % 8)) & (1 << UInt64(bits) - 1)
    case 3: return UInt64(bytes[index])
    case 4: return UInt64(bytes.word16(index * 2))
    case 5: return UInt64(bytes.word32(index * 4))
    default: return bytes.word64(index * 8)
    }
  }

  /// - Parameter value: must fit into an entry.
  static func put(_ value: UInt64, _ index: Int, order: UInt32, _ bytes: inout [UInt8]) {
    switch order {
    case 0, 1, 2:
      let bits = 1 << Int(order)
      let place = index * bits
      let mask = UInt8(1 << bits - 1) << UInt8(place % 8)
      bytes[place / 8] = bytes[place / 8] & ~mask | UInt8(truncatingIfNeeded: value) << UInt8(place % 8) & mask
    case 3: bytes[index] = UInt8(truncatingIfNeeded: value)
    case 4: bytes.put16(UInt16(truncatingIfNeeded: value), at: index * 2)
    case 5: bytes.put32(UInt32(truncatingIfNeeded: value), at: index * 4)
    default: bytes.put64(value, at: index * 8)
    }
  }
}
