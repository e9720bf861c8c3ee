/// What becomes of a cluster of the disk that cannot be written to as it is.

/// An entry of an L2 table of the disk: what it says, and what that means.
public struct ClusterEntry: Hashable, Sendable {
  public var entry: UInt64
  /// Of an extended entry; 0 of others.
  public var bitmap: UInt64
  public let cluster: Qcow2Cluster

  /// - Throws: it contradicts itself.
  public init(_ entry: UInt64, _ bitmap: UInt64, _ entries: Qcow2Entries) throws(Qcow2Fault) {
    self.entry = entry
    self.bitmap = bitmap
    cluster = try entries.level2(entry, bitmap: bitmap)
  }

  /// Nobody else has its place: it may be written to where it is.
  var isOwn: Bool { entry & Qcow2Entries.compressed == 0 && entry & Qcow2Entries.copied != 0 }

  /// A place in the file that it alone has.
  public var ownPlace: UInt64? {
    guard isOwn else { return nil }
    switch cluster {
    case .data(let place), .zero(let place?), .subclusters(let place?, _, _): return place
    case .unallocated, .zero(nil), .compressed, .subclusters(nil, _, _): return nil
    }
  }

  /// What loses a pointer when another place or none takes its place: bytes of the file.
  public var dropped: (place: UInt64, bytes: UInt64)? {
    switch cluster {
    case .data(let place), .zero(let place?), .subclusters(let place?, _, _): (place, 1)
    case .compressed(let place, let count):
      // The sectors that it is said to have, as they are counted.
      (place & ~511, place - (place & ~511) + UInt64(count))
    case .unallocated, .zero(nil), .subclusters(nil, _, _): nil
    }
  }
}

/// How a write reaches a cluster that has no place of its own, or not for all that is written.
public struct ClusterChange: Hashable, Sendable {
  /// Bytes of the cluster that are stored: those that are written, and around them what has to be there because the image cannot say of
  /// less than this that it has it.
  public let stored: Range<UInt64>
  /// Where in the file it goes; `nil`: to a cluster that is claimed for it.
  public let ownPlace: UInt64?
  /// Subclusters that have data afterwards, and zeroes; of an image without them 0.
  private let data: UInt32
  private let zero: UInt32
  private let isExtended: Bool

  /// - Parameters:
  ///   - asked: bytes of the cluster, at least one. Not all of them have a place of their own.
  public init(_ old: ClusterEntry, writing asked: Range<UInt64>, _ geometry: Qcow2Geometry) {
    isExtended = geometry.isExtended
    ownPlace = old.ownPlace
    let whole = 0..<geometry.clusterSize
    guard geometry.isExtended else {
      (stored, data, zero) = (whole, 0, 0)
      return
    }
    guard case .subclusters(let place, let oldData, let oldZero) = old.cluster, place == nil || old.isOwn else {
      // Compressed, or somebody else's, too: all of it is copied.
      (stored, data, zero) = (whole, .max, 0)
      return
    }
    let size = geometry.subclusterSize
    let (first, last) = (asked.lowerBound / size, (asked.upperBound - 1) / size)
    let touched = (UInt32.max >> UInt32(31 - (last - first))) << UInt32(first)
    // What has data goes on from what it has.
    let start = oldData >> UInt32(first) & 1 != 0 ? asked.lowerBound : first * size
    let end = oldData >> UInt32(last) & 1 != 0 ? asked.upperBound : (last + 1) * size
    (stored, data, zero) = (start..<end, oldData | touched, oldZero & ~touched)
  }

  /// The entry that says so.
  public func entry(_ place: UInt64) -> (entry: UInt64, bitmap: UInt64) {
    (place | Qcow2Entries.copied, isExtended ? UInt64(zero) << 32 | UInt64(data) : 0)
  }
}

extension ClusterEntry {
  /// It is data in a place of its own.
  public var isOwnData: Bool {
    guard case .data = cluster else { return false }
    return isOwn
  }

  /// The entry when bytes of it become zeroes without anything being stored for them.
  ///
  /// - Parameters:
  ///   - asked: bytes of the cluster, at least one: whole subclusters, or all of it.
  /// - Returns: `nil` where the image has no words for it.
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
      // What has data has its place; that is zeroed, and the entry says what it said.
      return data & touched == 0 ? (entry, UInt64(zero | touched) << 32 | UInt64(data), false) : nil
    }
    return isWhole ? (0, UInt64(UInt32.max) << 32, dropped != nil) : nil
  }
}
