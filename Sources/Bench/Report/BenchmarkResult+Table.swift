/// The result for people.
internal import Histogram
internal import TextTable

extension BenchmarkResult {
  /// A table with a row for each repeat and direction, and what is to be known below it.
  public func table() -> String {
    struct Row {
      var measurement: Measurement
      var what: String
      var latencies: Histogram<UInt64>
    }
    var rows: [Row] = []
    for measurement in measurements {
      for (what, latencies) in [("read", measurement.reads), ("write", measurement.writes)] where latencies.totalCount > 0 {
        rows.append(Row(measurement: measurement, what: what, latencies: latencies))
      }
    }
    func percentile(_ row: Row, _ value: Double) -> String { Format.microseconds(row.latencies.valueAtPercentile(value)) }
    func share(_ row: Row) -> Double { Double(row.latencies.totalCount) / Double(max(row.measurement.requests, 1)) }
    let table = TextTable<Row> {
      [
        Column(title: "", value: $0.what, align: .left),
        Column(title: "IOPS", value: Format.count($0.measurement.iops * share($0)), align: .right),
        Column(title: "MiB/s", value: Format.significant($0.measurement.bandwidth * share($0) / 1_048_576), align: .right),
        Column(title: "p50 us", value: percentile($0, 50), align: .right),
        Column(title: "p90", value: percentile($0, 90), align: .right),
        Column(title: "p99", value: percentile($0, 99), align: .right),
        Column(title: "p99.9", value: percentile($0, 99.9), align: .right),
        Column(title: "max", value: percentile($0, 100), align: .right),
        Column(title: "CPU us/IO", value: Format.optional($0.measurement.backendMicroseconds), align: .right),
        Column(title: "client", value: Format.significant($0.measurement.clientMicroseconds), align: .right),
        Column(title: "syscalls/IO", value: Format.optional($0.measurement.systemCallsPerRequest), align: .right),
        Column(
          title: "ctx/IO", value: Format.optional($0.measurement.perRequest($0.measurement.backend.switches)), align: .right),
        Column(title: "kicks/IO", value: Format.optional($0.measurement.perRequest($0.measurement.kicks)), align: .right),
        Column(title: "calls/IO", value: Format.optional($0.measurement.perRequest($0.measurement.calls)), align: .right),
        Column(title: "ceiling", value: $0.measurement.ceiling.map(Format.count) ?? "-", align: .right),
      ]
    }
    let workload = options.workload
    var text = "\(targetName): \(workload.pattern.rawValue), \(workload.blockSize) bytes, depth \(workload.depth)"
    text += workload.jobs == 1 ? "\n" : " on each of \(workload.jobs) queues\n"
    text += table.string(for: rows) ?? ""
    if !text.hasSuffix("\n") { text += "\n" }
    if measurements.count > 1 {
      let rates = measurements.map(\.iops)
      let spread = Statistics.deviation(rates) / max(Statistics.mean(rates), 1) * 100
      text += "median of \(measurements.count): \(Format.count(iops)) IOPS, spread \(Format.significant(spread)) %\n"
    }
    if verified > 0 { text += "contents of \(verified) blocks checked, all right\n" }
    return text
  }
}
