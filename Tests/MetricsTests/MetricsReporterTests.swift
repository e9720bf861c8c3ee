/// A disk's metrics through the API of swift-metrics, as a program that collects with it sees them.
import MetricsTestKit
import Testing
import VirtioBlkDevice
import VirtioBlkMetrics

struct MetricsReporterTests {
  private let system = TestMetrics()

  private func total(_ name: String, _ dimensions: [(String, String)] = []) throws -> Int64 {
    try system.expectCounter("vmm_blk_\(name)_total", [("disk", "vda")] + dimensions).totalValue
  }

  private func quantile(_ part: String, _ kind: String) throws -> Double? {
    try system.expectMeter(
      "vmm_blk_request_duration_seconds", [("disk", "vda"), ("kind", kind), ("quantile", part)]
    ).lastValue
  }

  @Test func countersGrowByWhatHappenedSinceTheLastReport() throws {
    var reporter = MetricsReporter(disk: "vda", factory: system)
    var metrics = BlockMetrics()
    metrics.counters.reads = 10
    metrics.counters.bytesRead = 40960
    metrics.counters.ioErrors = 3
    metrics.counters.mediumFailures = 1
    reporter.report(metrics)
    metrics.counters.reads = 25
    metrics.counters.writeZeroes = 2
    metrics.counters.throttledNanoseconds = 3_000_000_000
    metrics.depths = [2, 3]
    reporter.report(metrics)
    #expect(try total("requests", [("kind", "read")]) == 25)
    #expect(try total("requests", [("kind", "write_zeroes")]) == 2)
    #expect(try total("bytes", [("kind", "read")]) == 40960)
    #expect(try total("errors", [("why", "medium")]) == 1)
    #expect(try total("errors", [("why", "refused")]) == 2)
    #expect(try total("throttled_seconds") == 3)
    #expect(try system.expectMeter("vmm_blk_in_flight", [("disk", "vda")]).lastValue == 5)
  }

  /// The disk was removed, and added again under the same name.
  @Test func figuresThatShrinkCountFromZero() throws {
    var reporter = MetricsReporter(disk: "vda", factory: system)
    var metrics = BlockMetrics()
    metrics.counters.writes = 100
    metrics.latencies[.write] = LatencyHistogram()
    metrics.latencies[.write]?.add(50_000, count: 100)
    reporter.report(metrics)
    var other = BlockMetrics()
    other.counters.writes = 7
    other.latencies[.write] = LatencyHistogram()
    other.latencies[.write]?.add(1_000_000, count: 7)
    reporter.report(other)
    #expect(try total("requests", [("kind", "write")]) == 107)
    let median = try #require(try quantile("0.5", "write"))
    #expect(abs(median - 0.001) < 0.000_02)
  }

  @Test func quantilesAreOfTheRequestsSinceTheLastReport() throws {
    var reporter = MetricsReporter(disk: "vda", factory: system)
    var metrics = BlockMetrics()
    metrics.latencies[.read] = LatencyHistogram()
    metrics.latencies[.read]?.add(1000, count: 1_000_000)
    reporter.report(metrics)
    let before = try #require(try quantile("0.99", "read"))
    #expect(abs(before - 0.000_001) < 0.000_000_02)
    metrics.latencies[.read]?.add(9_000_000, count: 10)
    reporter.report(metrics)
    let after = try #require(try quantile("0.5", "read"))
    #expect(abs(after - 0.009) < 0.000_2)
    // No new requests: the last values stay, and nothing divides by zero.
    reporter.report(metrics)
    #expect(try quantile("0.5", "read") == after)
    #expect(throws: (any Error).self) { try quantile("0.5", "flush") }
  }
}
