/// The entries of an image's tables.

/// The mapping of one cluster of the disk. A value that was decoded from an entry has offsets below 2^56 that are multiples
/// of the cluster size; whether they are within the file is for the reader to check.
public enum Qcow2Cluster: Hashable, Sendable {
  /// The backing file's data, or zeroes if there is none.
  case unallocated
  /// Zeroes. `offset` is the cluster that is preallocated for it; `nil`: none.
  case zero(offset: UInt64?)
  case data(offset: UInt64)
  /// - Parameters:
  ///   - offset: any byte.
  ///   - count: an upper bound of its length, bytes; bytes after it may be included.
  case compressed(offset: UInt64, count: Int)
  /// Subclusters, the least significant bit first: those with data, and those that are zeroes; the others are unallocated.
  /// - Parameter offset: `nil` if no cluster is allocated, and then no subcluster has data either.
  case subclusters(offset: UInt64?, data: UInt32, zero: UInt32)
}

/// Decodes the entries of an image.
public struct Qcow2Entries: Hashable, Sendable {
  public let geometry: Qcow2Geometry
  /// Version 2 has no zero clusters.
  public let hasZeroFlag: Bool
  /// Offsets refer to the external data file, in which 0 is a valid offset.
  let isExternal: Bool

  @usableFromInline static var copied: UInt64 { 1 << 63 }
  static let compressed: UInt64 = 1 << 62
  static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
  /// Offsets of clusters: nothing but these bits, and `copied`, is in the entry of most clusters that have data.
  @usableFromInline let clusterMask: UInt64

  public init(_ header: Qcow2Header) {
    geometry = header.geometry
    clusterMask = Self.offsetMask & ~(geometry.clusterSize - 1)
    hasZeroFlag = header.version >= 3 && !geometry.isExtended
    isExternal = header.hasDataFile
  }

  /// - Returns: the offset of the L2 table; `nil`: there is none.
  public func level1(_ entry: UInt64) throws(Qcow2Fault) -> UInt64? {
    guard entry & ~(Self.copied | Self.offsetMask) == 0 else { throw .reservedBits(.level1, entry: entry) }
    let offset = entry & Self.offsetMask
    guard geometry.inCluster(offset) == 0 else { throw .misplaced(.level2, offset: offset) }
    return offset == 0 ? nil : offset
  }

  /// The same as `level2` for nearly all clusters with data, and for those that are not allocated, in a few instructions.
  ///
  /// - Returns: the offset of the cluster, and whether nothing else refers to it; 0 if the image has nothing there. `nil`:
  ///   `level2` has to be asked. The bitmap of an extended entry decides what the subclusters are.
  @inlinable @inline(__always)
  public func plainCluster(_ entry: UInt64) -> (place: UInt64, isOwn: Bool)? {
    let place = entry & clusterMask
    guard entry & ~(clusterMask | Self.copied) == 0, place != 0 || entry == 0 else { return nil }
    return (place, entry != place)
  }

  /// - Parameter bitmap: the second half of an extended entry; 0 for others.
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
