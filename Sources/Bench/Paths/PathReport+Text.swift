/// The laboratory's report for people and for spreadsheets.

extension PathReport {
  /// Tables by group, what each row is, and the recommendation.
  ///
  /// - Parameter width: characters in a line of the tables; `nil`: no limit.
  public func table(width: Int? = nil) -> String {
    let rounds = conditions.rounds == 1 ? "1 round" : "\(conditions.rounds) rounds"
    var text = """
      \(conditions.rw), \(conditions.blockSize) bytes, \(rounds) of \(conditions.slice) s
      on \(conditions.image) (\(conditions.direct ? "direct" : "page cache")), where not said otherwise engine \
      \(conditions.engine), waiting \(conditions.waiting)
      Linux \(conditions.kernel), \(conditions.processors) x \(conditions.processor), load before: \(conditions.load)\
      \(conditions.commit.map { ", commit \($0)" } ?? "")

      """
    if let warning = conditions.holesWarning { text += "warning: \(warning)\n" }
    if points.contains(where: \.isDisturbed) {
      text +=
        "disturbed: a limit is below its result, so something else ran at the same time; measure again on a quiet machine\n"
    }
    for group in PathGroup.allCases {
      let rows = rows.filter { $0.group == group }
      guard !rows.isEmpty else { continue }
      text += "\n\(group.title), costs and latencies at depth \(mainDepth)\n"
      text += table(of: rows, width: width)
      for row in rows { text += "  \(row.title): \(row.sentence)\(row.flags.map { " [\($0)]" } ?? "")\n" }
    }
    text += "\nrecommended here: \(recommendation.flags)\n"
    for reason in recommendation.reasons { text += "  - \(reason)\n" }
    return text
  }

  private func table(of rows: [PathDescription], width: Int?) -> String {
    let edges = [points.map(\.depth).min() ?? 1, mainDepth, 128].filter { depth in
      points.contains { $0.depth == depth && rows.map(\.id).contains($0.row) }
    }
    let depths = Set(edges).sorted()
    func column(_ title: String, _ value: (PathDescription) -> String) -> TableColumn {
      TableColumn(title: title, values: rows.map { $0.impossible == nil ? value($0) : "" })
    }
    func figure(_ title: String, _ value: (PathPoint) -> String?) -> TableColumn {
      column(title) { point($0.id, depth: mainDepth).flatMap(value) ?? "" }
    }
    func latency(_ title: String, _ name: String) -> TableColumn {
      figure(title) { $0.latency?[name].map(Format.microseconds) }
    }
    var columns = [TableColumn(title: "", alignment: .left, values: rows.map(\.title))]
    columns += depths.map { depth in
      column("IOPS QD\(depth)") { point($0.id, depth: depth).map { Format.count($0.iops) } ?? "" }
    }
    columns += [
      figure("of limit") { point in
        point.ofLimit.map { point.isDisturbed ? "disturbed" : Format.fixed($0 * 100, 0) + " %" }
      },
      figure("spread") { $0.spread.map { Format.fixed($0 * 100, 0) + " %" } },
      latency("p50 us", "50"), latency("p99", "99"), latency("p99.9", "99.9"),
      figure("CPU us/IO") { $0.cpu.map(Format.significant) },
      figure("syscalls/IO") { $0.systemCalls.map(Format.significant) },
      figure("calls/IO") { $0.calls.map(Format.significant) },
    ]
    var text = ColumnTable.text(columns, width: width)
    for row in rows { if let reason = row.impossible { text += "  \(row.title): not here: \(reason)\n" } }
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
