/// Results have fio's structure, so that fio's tools can read them.
import Foundation
import Histogram
import Testing

@testable import Bench

@Suite struct FioReportTests {
  private func run(plus: Bool = false) throws -> [String: Any] {
    let scratch = try Scratch()
    let options = BenchmarkOptions.short(.device(try scratch.device(), name: "disk")) {
      $0.pattern = .randrw
      $0.depth = 4
    }
    let text = try Benchmark.run(options).json(plus: plus)
    return try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
  }

  @Test func everyFieldOfFioIsThere() throws {
    let report = try run()
    let job = try #require((report["jobs"] as? [[String: Any]])?.first)
    let missing = Set(FioKeys.job).subtracting(jsonPaths(job)).sorted()
    #expect(missing.isEmpty)
    for key in ["fio version", "timestamp", "timestamp_ms", "time", "global options"] { #expect(report[key] != nil, "\(key)") }
  }

  @Test func figuresAgree() throws {
    let job = try #require((try run()["jobs"] as? [[String: Any]])?.first)
    for name in ["read", "write"] {
      let way = try #require(job[name] as? [String: Any])
      let total = try #require(way["total_ios"] as? Int)
      let iops = try #require(way["iops"] as? Double)
      #expect(total > 0)
      #expect(way["io_bytes"] as? Int == total * 4096)
      #expect(abs(Double(try #require(way["bw_bytes"] as? Int)) - iops * 4096) < 4096)
      let latency = try #require(way["clat_ns"] as? [String: Any])
      #expect(latency["N"] as? Int == total)
      let percentile = try #require(latency["percentile"] as? [String: Int])
      let values = percentile.sorted { Double($0.key) ?? 0 < Double($1.key) ?? 0 }.map(\.value)
      #expect(values == values.sorted())
    }
    for unit in [["latency_ns", "latency_us", "latency_ms"]] {
      let shares = unit.flatMap { (job[$0] as? [String: Double] ?? [:]).values }
      #expect(abs(shares.reduce(0, +) - 100) < 0.001)
    }
  }

  @Test func binsOfJsonPlusCountEveryRequest() throws {
    let job = try #require((try run(plus: true)["jobs"] as? [[String: Any]])?.first)
    let way = try #require(job["read"] as? [String: Any])
    let bins = try #require((way["clat_ns"] as? [String: Any])?["bins"] as? [String: Int])
    #expect(bins.values.reduce(0, +) == way["total_ios"] as? Int)
  }

  @Test func repeatsAreJobs() throws {
    var options = BenchmarkOptions.short(.echo)
    options.repeats = 3
    let result = try Benchmark.run(options)
    #expect(result.measurements.count == 3)
    let report = try JSONSerialization.jsonObject(with: Data(result.json(plus: false).utf8)) as? [String: Any]
    #expect((report?["jobs"] as? [Any])?.count == 3)
  }

  @Test(arguments: [
    (1.0, "1", "1.000000"), (50, "50", "50.000000"), (99.9, "99.9", "99.900000"), (99.95, "99.95", "99.950000"),
  ])
  func percentilesHaveFiosNames(value: Double, name: String, fioName: String) {
    #expect(Percentile(value: value).name == name)
    #expect(Percentile(value: value).fioName == fioName)
  }

  /// 1 … 1000 microseconds, each once: every percentile is known.
  @Test func percentilesOfAKnownSet() {
    var latencies = QueueTally().reads
    for value in 1...1000 { latencies.record(UInt64(value) * 1000) }
    let found = FioLatency(latencies, plus: false)
    for (name, wanted) in [("1.000000", 10_000.0), ("50.000000", 500_000), ("99.000000", 990_000), ("99.900000", 999_000)] {
      let value = Double(found.percentile?[name] ?? 0)
      #expect(abs(value - wanted) <= wanted / 1000 + 1, "\(name)")
    }
    #expect(found.count == 1000)
    #expect(found.min == 1000)
    let buckets = LatencyBuckets(latencies)
    #expect(buckets.microseconds["1000"].map { abs($0 - 24.9) < 0.5 } == true)
    #expect(buckets.milliseconds["2"].map { $0 < 0.5 } == true)
  }

  /// A latency beyond the histogram's range counts in its last bucket instead of getting lost.
  @Test func endlessLatenciesCount() {
    var tally = QueueTally()
    tally.record(.max, isWrite: false)
    tally.record(0, isWrite: true)
    #expect(tally.reads.totalCount == 1)
    #expect(tally.writes.totalCount == 1)
    #expect(LatencyBuckets(tally.reads).milliseconds[">=2000"] == 100)
  }
}
