/// The laboratory's report for people and for spreadsheets.
internal import TextTable

extension PathReport {
  /// Tables by group, the sentences to them, and the recommendation.
  public func table() -> String {
    let on = "\(conditions.image) (\(conditions.direct ? "direct" : "page cache"))"
    var text =
      "\(conditions.rw), \(conditions.blockSize) bytes, on \(on), \(conditions.rounds) rounds of \(conditions.slice) s, "
      + "Linux \(conditions.kernel), \(conditions.processors) x \(conditions.processor), load before: \(conditions.load)\n"
    for group in PathGroup.allCases {
      let rows = rows.filter { $0.group == group }
      guard !rows.isEmpty else { continue }
      text += "\n\(group.title), costs and latencies at depth \(mainDepth)\n"
      text += table(of: rows)
      for row in rows { text += "  \(row.title): \(row.sentence)\(row.flags.map { " [\($0)]" } ?? "")\n" }
    }
    text += "\nrecommended here: \(recommendation.flags)\n"
    for reason in recommendation.reasons { text += "  - \(reason)\n" }
    return text
  }

  private func table(of rows: [PathDescription]) -> String {
    let edges = [points.map(\.depth).min() ?? 1, mainDepth, 128].filter { depth in
      points.contains { $0.depth == depth && rows.map(\.id).contains($0.row) }
    }
    let depths = Set(edges).sorted()
    func rate(_ row: PathDescription, _ depth: Int) -> String {
      row.impossible != nil ? "-" : point(row.id, depth: depth).map { Format.count($0.iops) } ?? ""
    }
    func figure(_ row: PathDescription, _ value: (PathPoint) -> String?) -> String {
      point(row.id, depth: mainDepth).flatMap(value) ?? ""
    }
    func latency(_ row: PathDescription, _ name: String) -> String {
      figure(row) { $0.latency?[name].map(Format.microseconds) }
    }
    let table = TextTable<PathDescription> { row in
      [Column(title: "", value: row.title, align: .left)]
        + depths.map { Column(title: "IOPS QD\($0)", value: rate(row, $0), align: .right) } + [
          Column(
            title: "of limit", value: figure(row) { $0.ofLimit.map { Format.fixed($0 * 100, 0) + " %" } }, align: .right),
          Column(title: "spread", value: figure(row) { Format.fixed($0.spread * 100, 0) + " %" }, align: .right),
          Column(title: "p50 us", value: latency(row, "50"), align: .right),
          Column(title: "p99", value: latency(row, "99"), align: .right),
          Column(title: "p99.9", value: latency(row, "99.9"), align: .right),
          Column(title: "CPU us/IO", value: figure(row) { $0.cpu.map(Format.significant) }, align: .right),
          Column(title: "syscalls/IO", value: figure(row) { $0.systemCalls.map(Format.significant) }, align: .right),
          Column(title: "calls/IO", value: figure(row) { $0.calls.map(Format.significant) }, align: .right),
          Column(title: "", value: row.impossible.map { "not here: \($0)" } ?? "", align: .left),
        ]
    }
    var text = table.string(for: rows) ?? ""
    if !text.hasSuffix("\n") { text += "\n" }
    return text
  }

  /// One line for each row and depth.
  public func csv() -> String {
    var lines = [
      "row,group,title,depth,iops,spread,of_limit,limit,p50_us,p99_us,p99.9_us,max_us,cpu_us_per_io,syscalls_per_io,"
        + "ctx_per_io,kicks_per_io,calls_per_io,flags,impossible"
    ]
    func quoted(_ text: String) -> String {
      guard text.contains(where: { $0 == "," || $0 == "\"" }) else { return text }
      return "\"" + text.split(separator: "\"", omittingEmptySubsequences: false).joined(separator: "\"\"") + "\""
    }
    func number(_ value: Double?, _ digits: Int) -> String { value.map { Format.fixed($0, digits) } ?? "" }
    for row in rows {
      let words = [row.id, row.group.rawValue, quoted(row.title)]
      if let reason = row.impossible {
        lines.append((words + Array(repeating: "", count: 15) + [quoted(reason)]).joined(separator: ","))
        continue
      }
      for point in points where point.row == row.id {
        func microseconds(_ name: String) -> String { number(point.latency?[name].map { Double($0) / 1000 }, 3) }
        let figures = [
          "\(point.depth)", number(point.iops, 0), number(point.spread, 4), number(point.ofLimit, 4), number(point.limit, 0),
          microseconds("50"), microseconds("99"), microseconds("99.9"), microseconds("100"), number(point.cpu, 4),
          number(point.systemCalls, 4), number(point.switches, 4), number(point.kicks, 4), number(point.calls, 4),
        ]
        lines.append((words + figures + [quoted(row.flags ?? ""), ""]).joined(separator: ","))
      }
    }
    return lines.joined(separator: "\n") + "\n"
  }
}
