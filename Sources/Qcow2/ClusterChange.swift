/// How the mapping of a cluster changes when it cannot be written in place.

/// An entry of an L2 table of the disk, raw and decoded.
public struct ClusterEntry: Hashable, Sendable {
  public var entry: UInt64
  /// The bitmap of an extended entry; 0 for others.
  public var bitmap: UInt64
  public let cluster: Qcow2Cluster

  /// - Throws: the entry contradicts itself.
  public init(_ entry: UInt64, _ bitmap: UInt64, _ entries: Qcow2Entries) throws(Qcow2Fault) {
    self.entry = entry
    self.bitmap = bitmap
    cluster = try entries.level2(entry, bitmap: bitmap)
  }

  /// Its cluster is not shared: it may be written in place.
  var isOwn: Bool { entry & Qcow2Entries.compressed == 0 && entry & Qcow2Entries.copied != 0 }

  /// The offset of a cluster that is not shared.
  public var ownPlace: UInt64? {
    guard isOwn else { return nil }
    switch cluster {
    case .data(let place), .zero(let place?), .subclusters(let place?, _, _): return place
    case .unallocated, .zero(nil), .compressed, .subclusters(nil, _, _): return nil
    }
  }

  /// The bytes of the file that lose a pointer when the entry changes to another cluster or to none.
  public var dropped: (place: UInt64, bytes: UInt64)? {
    switch cluster {
    case .data(let place), .zero(let place?), .subclusters(let place?, _, _): (place, 1)
    case .compressed(let place, let count):
      // The sectors that its entry claims, which have refcounts.
      (place & ~511, place - (place & ~511) + UInt64(count))
    case .unallocated, .zero(nil), .subclusters(nil, _, _): nil
    }
  }
}

/// How a write is done if the disk has no unshared cluster for it, or not for all bytes that are written.
public struct ClusterChange: Hashable, Sendable {
  /// Bytes of the cluster that are stored: those that are written, and those around them that have to be copied, because the
  /// image has no smaller unit of allocation.
  public let stored: Range<UInt64>
  /// The offset in the file; `nil`: a cluster has to be claimed for it.
  public let ownPlace: UInt64?
  /// Subclusters with data afterwards, and with zeroes; 0 for an image without subclusters.
  private let data: UInt32
  private let zero: UInt32
  private let isExtended: Bool

  /// - Parameters:
  ///   - asked: bytes of the cluster, at least one. Not all of them can be written in place.
  public init(_ old: ClusterEntry, writing asked: Range<UInt64>, _ geometry: Qcow2Geometry) {
    isExtended = geometry.isExtended
    ownPlace = old.ownPlace
    let whole = 0..<geometry.clusterSize
    guard geometry.isExtended else {
      (stored, data, zero) = (whole, 0, 0)
      return
    }
    guard case .subclusters(let place, let oldData, let oldZero) = old.cluster, place == nil || old.isOwn else {
      // Compressed or shared: all of it is copied.
      (stored, data, zero) = (whole, .max, 0)
      return
    }
    let size = geometry.subclusterSize
    let (first, last) = (asked.lowerBound / size, (asked.upperBound - 1) / size)
    let touched = (UInt32.max >> UInt32(31 - (last - first))) << UInt32(first)
    // Partly written subclusters are filled up, except those that have data already.
    let start = oldData >> UInt32(first) & 1 != 0 ? asked.lowerBound : first * size
    let end = oldData >> UInt32(last) & 1 != 0 ? asked.upperBound : (last + 1) * size
    (stored, data, zero) = (start..<end, oldData | touched, oldZero & ~touched)
  }

  /// The new entry.
  public func entry(_ place: UInt64) -> (entry: UInt64, bitmap: UInt64) {
    (place | Qcow2Entries.copied, isExtended ? UInt64(zero) << 32 | UInt64(data) : 0)
  }
}

extension ClusterEntry {
  /// Whether it is data in a cluster that is not shared.
  public var isOwnData: Bool {
    guard case .data = cluster else { return false }
    return isOwn
  }

  /// The entry after bytes of the cluster became zeroes without any data being stored.
  ///
  /// - Parameters:
  ///   - asked: bytes of the cluster, at least one: whole subclusters, or all of it.
  /// - Returns: `nil` if the image cannot express that.
  public func zeroed(
    _ asked: Range<UInt64>, _ geometry: Qcow2Geometry, hasZeroFlag: Bool
  ) -> (entry: UInt64, bitmap: UInt64, drops: Bool)? {
    let size = geometry.subclusterSize
    guard asked.lowerBound % size == 0, asked.upperBound % size == 0 else { return nil }
    let isWhole = asked.count == Int(geometry.clusterSize)
    guard geometry.isExtended else { return hasZeroFlag && isWhole ? (1, 0, dropped != nil) : nil }
    if case .subclusters(let place, let data, let zero) = cluster, place == nil || isOwn {
      let (first, last) = (asked.lowerBound / size, asked.upperBound / size - 1)
      let touched = (UInt32.max >> UInt32(31 - (last - first))) << UInt32(first)
      // Subclusters with data are zeroed in place, and their bits stay.
      return data & touched == 0 ? (entry, UInt64(zero | touched) << 32 | UInt64(data), false) : nil
    }
    return isWhole ? (0, UInt64(UInt32.max) << 32, dropped != nil) : nil
  }
}
