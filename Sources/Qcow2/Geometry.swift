/// The geometry of an image: the sizes of clusters, tables and subclusters, with which a byte of the disk is looked up.

public struct Qcow2Geometry: Hashable, Sendable {
  /// 9 … 21.
  public let clusterBits: UInt32
  /// Entries of L2 tables have 16 bytes, and a cluster has 32 subclusters.
  public let isExtended: Bool

  public init(clusterBits: UInt32, isExtended: Bool) {
    self.clusterBits = clusterBits
    self.isExtended = isExtended
  }

  /// Bytes.
  public var clusterSize: UInt64 { 1 &<< UInt64(clusterBits) }
  public var entryBytes: Int { isExtended ? 16 : 8 }
  /// Entries of an L2 table.
  public var level2Entries: UInt64 { level2Span >> UInt64(clusterBits) }
  /// Bytes of the disk that an L2 table maps.
  public var level2Span: UInt64 { 1 &<< spanBits }
  // Shifts: a lookup has no time for divisions.
  private var spanBits: UInt64 { UInt64(2 &* clusterBits &- (isExtended ? 4 : 3)) }
  /// Bytes.
  public var subclusterSize: UInt64 { 1 &<< subclusterBits }
  /// 9 … 21.
  public var subclusterBits: UInt64 { UInt64(isExtended ? clusterBits &- 5 : clusterBits) }

  /// Entries of the L1 table that a disk needs.
  public func level1Entries(for size: UInt64) -> UInt64 { size / level2Span + (size % level2Span == 0 ? 0 : 1) }

  public func level1Index(_ offset: UInt64) -> Int { Int(truncatingIfNeeded: offset &>> spanBits) }
  public func level2Index(_ offset: UInt64) -> Int { Int(truncatingIfNeeded: inLevel2Span(offset) &>> UInt64(clusterBits)) }
  /// Bytes from the beginning of what an L2 table maps.
  public func inLevel2Span(_ offset: UInt64) -> UInt64 { offset & (level2Span - 1) }
  public func inCluster(_ offset: UInt64) -> UInt64 { offset & (clusterSize - 1) }
}
