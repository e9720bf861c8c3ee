/// The result as text for people.
internal import Histogram

extension BenchmarkResult {
  /// A table with a row for each repeat and direction, and notes below it.
  ///
  /// - Parameter width: characters in a line; `nil`: no limit.
  public func table(width: Int? = nil) -> String {
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
    func column(_ title: String, _ alignment: TableColumn.Alignment = .right, _ value: (Row) -> String) -> TableColumn {
      TableColumn(title: title, alignment: alignment, values: rows.map(value))
    }
    let columns = [
      column("", .left) { $0.what },
      column("IOPS") { Format.count($0.measurement.iops * share($0)) },
      column("MiB/s") { Format.significant($0.measurement.bandwidth * share($0) / 1_048_576) },
      column("p50 us") { percentile($0, 50) },
      column("p90") { percentile($0, 90) },
      column("p99") { percentile($0, 99) },
      column("p99.9") { percentile($0, 99.9) },
      column("max") { percentile($0, 100) },
      column("CPU us/IO") { Format.optional($0.measurement.backendMicroseconds) },
      column("client") { Format.significant($0.measurement.clientMicroseconds) },
      column("syscalls/IO") { Format.optional($0.measurement.systemCallsPerRequest) },
      column("ctx/IO") { Format.optional($0.measurement.perRequest($0.measurement.backend.switches)) },
      column("kicks/IO") { Format.optional($0.measurement.perRequest($0.measurement.kicks)) },
      column("calls/IO") { Format.optional($0.measurement.perRequest($0.measurement.calls)) },
      column("ceiling") {
        ($0.measurement.ceiling.map(Format.count) ?? "-") + ($0.measurement.isDisturbed ? " disturbed" : "")
      },
    ]
    let workload = options.workload
    var text = "\(targetName): \(workload.pattern.rawValue), \(workload.blockSize) bytes, depth \(workload.depth)"
    text += workload.jobs == 1 ? "\n" : " on each of \(workload.jobs) queues\n"
    if let conditions = options.conditions { text += "\(conditions.label)\n" }
    text += ColumnTable.text(columns, width: width)
    if measurements.count > 1 {
      let rates = measurements.map(\.iops)
      let spread = Statistics.deviation(rates) / max(Statistics.mean(rates), 1) * 100
      text += "median of \(measurements.count): \(Format.count(iops)) IOPS, spread \(Format.significant(spread)) %\n"
    }
    if verified > 0 { text += "contents of \(verified) blocks checked, all right\n" }
    return text
  }
}
