/// Metrics from another process, as lines and as a page: whatever answers on a control socket may send anything.
import MetricsExport
import Testing

@testable import OperatorWords
@testable import VirtioBlkDevice

@Suite struct FiguresTests {
  private static func metrics(depths: [Int], latencies: [String: Operator.Histogram] = [:], disks: Int = 1) -> Operator.Metrics
  {
    var counters = Operator.Counters(BlockCounters())
    counters.reads = .max
    counters.bytesRead = .max
    let disk = Operator.DiskMetrics(
      disk: "/a.sock", image: "/a", size: .max, engine: "sync", state: .driven, flushFailed: false, features: [], chosen: [],
      counters: counters, depths: depths, latencies: latencies)
    let process = Operator.ProcessMetrics(
      program: "vmm-blk", startTime: .max, cpuTime: .max, residentMemory: .max, openFiles: .max, threads: .max)
    return Operator.Metrics(process: process, disks: Array(repeating: disk, count: disks))
  }

  /// Queue depths whose sum overflows, within a disk and over several disks.
  @Test(arguments: [[1, 2], [.max, 1], [.min, -1], [.max, .max, .min]])
  func depthsThatCannotBe(depths: [Int]) {
    for disks in [1, 2] {
      let metrics = Self.metrics(depths: depths, disks: disks)
      for seconds in [0, 0.001, 1e9] {
        let lines = TopTable.lines(from: metrics, to: metrics, seconds: seconds, width: 120, rows: nil)
        #expect(lines.count == (disks == 1 ? 3 : 5))
      }
      #expect(MetricsPage.page(metrics).bytes.count > 1000)
    }
  }

  /// Buckets that are invalid, that overlap, and whose counts overflow.
  @Test(
    arguments: [
      [], [[]], [[1, 2]], [[2, 1, 5]], [[1, 1, 5]], [[0, .max, .max]], [[0, 1, .max], [0, 1, .max]],
      [[5, 6, 1], [1, 2, .max]],
    ] as [[[UInt64]]])
  func histogramsThatCannotBe(buckets: [[UInt64]]) {
    let latencies = [
      "reads": Operator.Histogram(sum: .max, buckets: buckets), "x": Operator.Histogram(sum: 0, buckets: buckets),
    ]
    let metrics = Self.metrics(depths: [], latencies: latencies)
    #expect(TopTable.lines(from: Self.metrics(depths: []), to: metrics, seconds: 1, width: 20, rows: 1).count == 3)
    #expect(MetricsPage.page(metrics).bytes.count > 1000)
  }
}
