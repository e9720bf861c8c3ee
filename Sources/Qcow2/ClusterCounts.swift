/// The number of uses of each cluster, as counted by the checker.

/// Numbers by cluster, with memory only for those that are used: a file may claim any size, and uses may be anywhere in it.
struct ClusterCounts {
  /// Clusters that share one array of 256 bytes: the most memory that one use can cost.
  static let group: UInt64 = 64
  private var groups: [UInt64: [UInt32]] = [:]

  mutating func add(_ cluster: UInt64) {
    groups[cluster / Self.group, default: [UInt32](repeating: 0, count: Int(Self.group))][Int(cluster % Self.group)] &+= 1
  }

  subscript(cluster: UInt64) -> UInt64 {
    guard let group = groups[cluster / Self.group] else { return 0 }
    return UInt64(group[Int(cluster % Self.group)])
  }

  /// Whether no cluster in the group of this one has a number.
  func isEmpty(around cluster: UInt64) -> Bool { groups[cluster / Self.group] == nil }

  /// Visits the numbers that are not 0, in the order of the clusters.
  func visit(_ body: (_ cluster: UInt64, _ count: UInt64) -> Void) {
    for key in groups.keys.sorted() {
      guard let group = groups[key] else { continue }
      for index in group.indices where group[index] != 0 { body(key * Self.group + UInt64(index), UInt64(group[index])) }
    }
  }
}
