/// Which bytes of guest memory are in use: first fit from a list of free ranges, each time from another region, so that all
/// regions get buffers.

struct GuestAllocator {
  /// Free ranges of each region, offsets in the region, sorted, never adjacent.
  private(set) var free: [[Range<Int>]]
  private var nextRegion = 0

  init(sizes: [Int]) { free = sizes.map { [0..<$0] } }

  /// - Parameters:
  ///   - before, after: bytes to take around the result, for guards.
  ///   - base: the guest address of each region, for the alignment.
  /// - Returns: the region, and where in it the result begins; `nil` when nothing fits.
  mutating func take(
    count: Int, alignment: Int, before: Int, after: Int, base: (Int) -> UInt64
  ) -> (region: Int, offset: Int)? {
    for step in 0..<free.count {
      let region = (nextRegion + step) % free.count
      for (place, range) in free[region].enumerated() {
        let address = base(region) &+ UInt64(range.lowerBound + before)
        let padding = Int((0 &- address) & UInt64(alignment - 1))
        let start = range.lowerBound + before + padding
        guard count <= range.upperBound, start <= range.upperBound - count - after else { continue }
        let taken = start - before..<start + count + after
        var left: [Range<Int>] = []
        if range.lowerBound < taken.lowerBound { left.append(range.lowerBound..<taken.lowerBound) }
        if taken.upperBound < range.upperBound { left.append(taken.upperBound..<range.upperBound) }
        free[region].replaceSubrange(place...place, with: left)
        nextRegion = (region + 1) % free.count
        return (region, start)
      }
    }
    return nil
  }

  /// Takes exactly this range. - Returns: false when part of it is in use.
  mutating func take(region: Int, _ range: Range<Int>) -> Bool {
    guard let place = free[region].firstIndex(where: { $0.lowerBound <= range.lowerBound && range.upperBound <= $0.upperBound })
    else { return false }
    let whole = free[region][place]
    let left = [whole.lowerBound..<range.lowerBound, range.upperBound..<whole.upperBound].filter { !$0.isEmpty }
    free[region].replaceSubrange(place...place, with: left)
    return true
  }

  /// Frees a range, with its guards.
  mutating func give(region: Int, _ range: Range<Int>) {
    var low = 0
    var high = free[region].count
    while low < high {
      let middle = (low + high) / 2
      if free[region][middle].lowerBound < range.lowerBound { low = middle + 1 } else { high = middle }
    }
    var merged = range
    var replaced = low..<low
    if low > 0, free[region][low - 1].upperBound == range.lowerBound {
      merged = free[region][low - 1].lowerBound..<merged.upperBound
      replaced = low - 1..<low
    }
    if low < free[region].count, free[region][low].lowerBound == range.upperBound {
      merged = merged.lowerBound..<free[region][low].upperBound
      replaced = replaced.lowerBound..<low + 1
    }
    free[region].replaceSubrange(replaced, with: [merged])
  }
}
