/// Where a worker records how long requests took: memory that belongs to the device, without a lock, like the counters.
internal import SystemPackage
internal import VirtioCore

/// One worker's part.
@safe
struct MetricsBlock: @unchecked Sendable {
  /// Words of a kind: the sum of its times, and the first and the last bucket that were ever hit, each plus one.
  private static let headWords = 3
  private static let kinds = RequestKind.allCases.count

  private let base: UnsafeMutablePointer<UInt64>
  private let workers: Int
  private let lanes: Int

  /// - Parameters:
  ///   - base: zeroed memory of `wordCount(lanes:)` words, which outlives this value.
  ///   - workers: workers of the device, among which its queues are divided in turn.
  ///   - lanes: the most queues that this worker may have.
  fileprivate init(_ base: UnsafeMutablePointer<UInt64>, workers: Int, lanes: Int) {
    unsafe self.base = base
    self.workers = workers
    self.lanes = lanes
  }

  /// Words of 8 bytes; whole pages, so that pages that are never written to are never allocated.
  static func wordCount(lanes: Int) -> Int {
    let words = headWords * kinds + lanes + kinds * LatencyScale.bucketCount
    return (words + 511) & ~511
  }

  @inline(__always)
  private func word(_ index: Int) -> SharedCell<UInt64> { unsafe SharedCell(base + index) }

  private func head(_ kind: Int) -> Int { kind &* Self.headWords }
  private func buckets(_ kind: Int) -> Int { Self.headWords * Self.kinds + lanes + kind &* LatencyScale.bucketCount }

  /// Requests of a kind took this long. Only the owning worker calls this.
  func record(_ kind: Int, nanoseconds: UInt64, count: UInt64) {
    let bucket = LatencyScale.bucket(of: nanoseconds)
    let head = head(kind)
    let name = UInt64(bucket) &+ 1
    let first = word(head + 1)
    let last = word(head + 2)
    // Bounds first: readers look at nothing outside them.
    if first.loadRelaxed() == 0 || name < first.loadRelaxed() { first.storeRelaxed(name) }
    if name > last.loadRelaxed() { last.storeRelaxed(name) }
    let cell = word(buckets(kind) + bucket)
    cell.storeRelaxed(cell.loadRelaxed() &+ count)
    let sum = word(head)
    sum.storeRelaxed(sum.loadRelaxed() &+ nanoseconds &* count)
  }

  /// Where the number of requests in flight on a queue of this worker is recorded.
  func depth(ofQueue queue: Int) -> SharedCell<UInt64> { word(Self.headWords * Self.kinds + queue / workers) }

  /// Adds what is recorded for a kind.
  func add(_ kind: RequestKind, to histogram: inout LatencyHistogram) {
    let head = head(kind.rawValue)
    let (first, last) = (Int(word(head + 1).loadRelaxed()), Int(word(head + 2).loadRelaxed()))
    guard first > 0, first <= last else { return }
    let buckets = buckets(kind.rawValue)
    for bucket in first - 1...last - 1 {
      let count = word(buckets + bucket).loadRelaxed()
      if count > 0 { histogram.add(bucket: bucket, count) }
    }
    histogram.add(sum: word(head).loadRelaxed())
  }
}

/// The parts of all workers of a device, in one mapping: pages that no worker has written to cost nothing.
@safe
final class MetricsArea: @unchecked Sendable {
  private let mapping: Mapping
  let blocks: [MetricsBlock]
  let clock = TickClock.shared
  private let queueCount: Int

  /// - Parameters:
  ///   - workers: at most as many as queues; queue q belongs to worker q % workers.
  /// - Throws: if there is not enough memory.
  init(queueCount: Int, workers: Int) throws(Errno) {
    let lanes = (queueCount + workers - 1) / workers
    let words = MetricsBlock.wordCount(lanes: lanes)
    let mapping = try Mapping(anonymous: workers * words * 8)
    let base = unsafe mapping.base.bindMemory(to: UInt64.self, capacity: workers * words)
    blocks = (0..<workers).map { unsafe MetricsBlock(base + $0 * words, workers: workers, lanes: lanes) }
    self.mapping = mapping
    self.queueCount = queueCount
  }

  /// Adds everything that is recorded.
  func read(into metrics: inout BlockMetrics) {
    for kind in RequestKind.allCases {
      var histogram = LatencyHistogram()
      for block in blocks { block.add(kind, to: &histogram) }
      metrics.latencies[kind] = histogram
    }
    metrics.depths = (0..<queueCount).map {
      Int(truncatingIfNeeded: blocks[$0 % blocks.count].depth(ofQueue: $0).loadRelaxed())
    }
  }
}
