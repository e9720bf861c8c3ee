/// What one queue did while it was measured.
internal import Histogram

struct QueueTally: Sendable {
  /// The longest latency that is distinguished, nanoseconds; longer ones count as this.
  static let longest: UInt64 = 100_000_000_000

  /// Latencies in nanoseconds, three significant digits; all memory is allocated here.
  var reads = Histogram<UInt64>(lowestDiscernibleValue: 1, highestTrackableValue: longest)
  var writes = Histogram<UInt64>(lowestDiscernibleValue: 1, highestTrackableValue: longest)
  var kicks: UInt64 = 0
  var calls: UInt64 = 0
  /// Blocks whose contents were checked.
  var verified: UInt64 = 0

  @inline(__always)
  mutating func record(_ nanoseconds: UInt64, isWrite: Bool) {
    let value = min(nanoseconds, Self.longest)
    if isWrite { writes.record(value) } else { reads.record(value) }
  }

  mutating func add(_ other: QueueTally) {
    reads.add(other.reads)
    writes.add(other.writes)
    kicks &+= other.kicks
    calls &+= other.calls
    verified &+= other.verified
  }
}
