/// What the entries of an image's tables say.

/// What is at a cluster of the disk. A value that was made from an entry has offsets below 2^56 on clusters' beginnings; where the
/// file ends has to be looked at by whoever reads there.
public enum Qcow2Cluster: Hashable, Sendable {
  /// What the backing file has there, or zeroes.
  case unallocated
  /// Zeroes. A place may be kept for it: `offset`, else `nil`.
  case zero(offset: UInt64?)
  case data(offset: UInt64)
  /// - Parameters:
  ///   - offset: any byte.
  ///   - count: bytes that may belong to it, with what is after it.
  case compressed(offset: UInt64, count: Int)
  /// Subclusters, the least significant bit first: those that have data, those that are zeroes, the rest is as `unallocated`.
  /// - Parameter offset: `nil` where there is no place, and then there is no data either.
  case subclusters(offset: UInt64?, data: UInt32, zero: UInt32)
}

/// How an image's entries are read.
public struct Qcow2Entries: Hashable, Sendable {
  public let geometry: Qcow2Geometry
  /// Version 2 has no cluster that is marked as zeroes.
  public let hasZeroFlag: Bool
  /// Offsets are those of another file, where 0 is a place, too.
  let isExternal: Bool

  static let copied: UInt64 = 1 << 63
  static let compressed: UInt64 = 1 << 62
  static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

  public init(_ header: Qcow2Header) {
    geometry = header.geometry
    hasZeroFlag = header.version >= 3 && !geometry.isExtended
    isExternal = header.hasDataFile
  }

  /// - Returns: where the L2 table is; `nil`: there is none.
  public func level1(_ entry: UInt64) throws(Qcow2Fault) -> UInt64? {
    guard entry & ~(Self.copied | Self.offsetMask) == 0 else { throw .reservedBits(.level1, entry: entry) }
    let offset = entry & Self.offsetMask
    guard geometry.inCluster(offset) == 0 else { throw .misplaced(.level2, offset: offset) }
    return offset == 0 ? nil : offset
  }

  /// - Parameter bitmap: the second half of an extended entry; 0 of others.
  @inline(__always)
  public func level2(_ entry: UInt64, bitmap: UInt64) throws(Qcow2Fault) -> Qcow2Cluster {
    if entry & Self.compressed != 0 { return try compressed(entry, bitmap) }
    let offset = entry & Self.offsetMask
    guard entry & ~(Self.copied | Self.offsetMask | (hasZeroFlag ? 1 : 0)) == 0 else {
      throw .reservedBits(.level2, entry: entry)
    }
    guard geometry.inCluster(offset) == 0 else { throw .misplaced(.data, offset: offset) }
    let place: UInt64? = offset != 0 || isExternal && entry & Self.copied != 0 ? offset : nil
    if geometry.isExtended {
      let data = UInt32(truncatingIfNeeded: bitmap)
      let zero = UInt32(truncatingIfNeeded: bitmap >> 32)
      guard data & zero == 0, place != nil || data == 0 else { throw .badSubclusters(entry: entry) }
      return .subclusters(offset: place, data: data, zero: zero)
    }
    if entry & 1 != 0 { return .zero(offset: place) }
    guard let place else { return .unallocated }
    return .data(offset: place)
  }

  private func compressed(_ entry: UInt64, _ bitmap: UInt64) throws(Qcow2Fault) -> Qcow2Cluster {
    guard !isExternal else { throw .reservedBits(.level2, entry: entry) }
    guard bitmap == 0 else { throw .badSubclusters(entry: entry) }
    let bits = UInt64(62 - (geometry.clusterBits - 8))
    let offset = entry & ((1 << bits) - 1)
    let sectors = (entry & (Self.compressed - 1)) >> bits + 1
    guard offset < Qcow2Limits.offset else { throw .pastEnd(.compressed, offset: offset) }
    return .compressed(offset: offset, count: Int(sectors * 512 - (offset & 511)))
  }
}
