/// A histogram of latencies.

/// Counts by ranges of time. A range is at most 1/32 of its lower bound wide, so that its middle is within 1.6 % of every time
/// in it; below 64 ns it is 1 ns wide. Times from 2^40 ns (18 minutes) on share the last range.
///
/// The bounds are the same in every histogram of every process, and counts never shrink: two of them can be added, and a later
/// one minus an earlier one is what happened in between.
public struct LatencyHistogram: Hashable, Sendable {
  /// A range of time and how many requests took that long.
  public struct Bucket: Hashable, Sendable {
    /// Nanoseconds.
    public var range: Range<UInt64>
    /// Requests that took that long.
    public var count: UInt64

    /// What a request of this bucket took, nanoseconds: the middle of the range.
    public var middle: UInt64 { range.lowerBound + (range.upperBound - 1 - range.lowerBound) / 2 }
  }

  /// The time of all requests together, nanoseconds.
  public private(set) var sum: UInt64 = 0
  /// The number of the first of `counts`.
  private var first = 0
  private var counts: [UInt64] = []

  /// An empty histogram.
  public init() {}

  /// The number of requests.
  public var count: UInt64 { counts.reduce(0, &+) }

  /// The average time of a request, nanoseconds; `nil` if there was none.
  public var mean: Double? {
    let count = count
    return count > 0 ? Double(sum) / Double(count) : nil
  }

  /// The buckets that have requests, shortest first.
  public var buckets: [Bucket] {
    counts.indices.compactMap { place in
      counts[place] > 0 ? Bucket(range: LatencyScale.range(of: first + place), count: counts[place]) : nil
    }
  }

  /// The time within which this part of all requests was answered, nanoseconds; `nil` if there was none.
  ///
  /// - Parameter part: 0 … 1: 0.99 for the 99th percentile.
  public func quantile(_ part: Double) -> UInt64? {
    let total = count
    guard total > 0 else { return nil }
    let wanted = max(1, (Double(total) * min(max(part, 0), 1)).rounded(.up))
    var seen: UInt64 = 0
    for bucket in buckets {
      seen &+= bucket.count
      if Double(seen) >= wanted { return bucket.middle }
    }
    return buckets.last?.middle
  }

  /// Requests that took at most this long, nanoseconds: those in ranges that end there or earlier.
  public func count(within limit: UInt64) -> UInt64 {
    buckets.reduce(0) { $1.range.upperBound - 1 <= limit ? $0 &+ $1.count : $0 }
  }

  /// Adds requests that took this long, nanoseconds.
  public mutating func add(_ nanoseconds: UInt64, count: UInt64 = 1) {
    add(bucket: LatencyScale.bucket(of: nanoseconds), count)
    sum &+= nanoseconds &* count
  }

  /// Adds the requests of another histogram.
  public mutating func add(_ other: LatencyHistogram) {
    for place in other.counts.indices where other.counts[place] > 0 { add(bucket: other.first + place, other.counts[place]) }
    sum &+= other.sum
  }

  /// What was added since an earlier state of the same histogram; all of it, if the other is not an earlier state.
  public func since(_ earlier: LatencyHistogram) -> LatencyHistogram {
    var result = self
    for place in earlier.counts.indices where earlier.counts[place] > 0 {
      let own = earlier.first + place - first
      guard counts.indices.contains(own), counts[own] >= earlier.counts[place] else { return self }
      result.counts[own] -= earlier.counts[place]
    }
    result.sum &-= earlier.sum
    return result
  }

  mutating func add(sum: UInt64) { self.sum &+= sum }

  mutating func add(bucket: Int, _ count: UInt64) {
    if counts.isEmpty { first = bucket }
    if bucket < first {
      counts.insert(contentsOf: repeatElement(0, count: first - bucket), at: 0)
      first = bucket
    }
    if bucket - first >= counts.count {
      counts.append(contentsOf: repeatElement(0, count: bucket - first - counts.count + 1))
    }
    counts[bucket - first] &+= count
  }
}

/// Which times share a bucket: 1 ns each below 64, then 32 buckets for each doubling.
enum LatencyScale {
  private static let bits = 5
  /// Times from here on are one bucket, the last.
  private static let longest: UInt64 = 1 << 40
  static let bucketCount = bucket(of: longest) + 1

  @inline(__always)
  static func bucket(of nanoseconds: UInt64) -> Int {
    let value = min(nanoseconds, longest)
    // The highest bit and the five below it select the bucket.
    let shift = max(0, 63 - bits - (value | 1).leadingZeroBitCount)
    return shift &<< bits &+ Int(truncatingIfNeeded: value &>> UInt64(shift))
  }

  static func range(of bucket: Int) -> Range<UInt64> {
    let shift = max(0, bucket >> bits - 1)
    let lower = UInt64(bucket - shift << bits) << UInt64(shift)
    return lower..<(lower + 1 << UInt64(shift))
  }
}
