/// Where the time went, as lines for a terminal.
internal import VirtioBlkDevice

package enum TraceTable {
  /// A line for each kind of request of each disk, and one for each thread.
  package static func lines(_ disks: [TracedDisk]) -> [String] {
    disks.enumerated().flatMap { index, disk in (index == 0 ? [] : [""]) + lines(disk) }
  }

  private static func lines(_ disk: TracedDisk) -> [String] {
    let requests = disk.requests
    let answered = requests.filter { $0.answered != nil }
    let time = disk.range.upperBound - disk.range.lowerBound
    var lines = ["\(disk.name) (\(disk.engine)): \(answered.count) requests recorded in \(duration(time))"]
    let header = ["", "requests", "p50", "p99", "limit", "medium", "order", "publish"]
    var rows = [header]
    for kind in RequestKind.allCases {
      let ours = answered.filter { $0.kind == kind }
      guard !ours.isEmpty else { continue }
      let whole = ours.map { $0.end - $0.taken }.sorted()
      var row = [
        "\(kind)", "\(ours.count)", duration(whole[(whole.count - 1) / 2]),
        duration(whole[min(whole.count - 1, whole.count * 99 / 100)]),
      ]
      for name in RequestPhase.Name.allCases {
        let sum = ours.reduce(UInt64(0)) { total, request in
          request.phases.reduce(total) { $1.name == name ? $0 + $1.range.length : $0 }
        }
        row.append(duration(sum / UInt64(ours.count)))
      }
      rows.append(row)
    }
    if rows.count > 1 { lines += aligned(rows) }
    let inFlight = requests.count - answered.count
    if inFlight > 0 { lines.append("\(inFlight) \(inFlight == 1 ? "request was" : "requests were") in flight at the end") }
    lines += threadLines(disk)
    return lines
  }

  private static func threadLines(_ disk: TracedDisk) -> [String] {
    var rows = [
      [
        "", "recorded", "works", "polls", "asleep", "of that with requests in flight", "sleeps", "kicks", "calls",
        "overwritten",
      ]
    ]
    for thread in disk.threads {
      let rests = thread.spans.reduce(UInt64(0)) { $1.kind == .rest ? $0 + $1.range.clamped(to: thread.range).length : $0 }
      // Shares are of the recorded time.
      let whole = max(1, thread.range.length - min(rests, thread.range.length))
      func sum(_ isOne: (TracedSpan) -> Bool) -> UInt64 {
        min(whole, thread.spans.reduce(0) { isOne($1) ? $0 + $1.range.clamped(to: thread.range).length : $0 })
      }
      let polls = sum { $0.kind == .polling }
      let asleep = sum { $0.kind == .asleep }
      let waits = sum { $0.kind == .asleep && $0.inFlight > 0 }
      rows.append([
        "thread \(thread.number)", percent(whole, of: max(1, thread.range.length)),
        percent(whole - min(whole, polls + asleep), of: whole), percent(polls, of: whole),
        percent(asleep, of: whole), percent(waits, of: max(1, asleep)), "\(thread.spans.count { $0.kind == .asleep })",
        "\(thread.kicks.count)", "\(thread.calls.count)", "\(thread.overwritten)",
      ])
    }
    var lines = rows.count > 1 ? aligned(rows) : ["no thread served a queue during the trace"]
    for number in disk.silent { lines.append("thread \(number) has not responded: its medium does not answer") }
    return lines
  }

  private static func percent(_ part: UInt64, of whole: UInt64) -> String {
    "\(Int((Double(part) * 100 / Double(whole)).rounded())) %"
  }

  /// Three digits and a unit.
  package static func duration(_ nanoseconds: UInt64) -> String {
    let value = Double(nanoseconds)
    for (unit, size) in [("s", 1e9), ("ms", 1e6), ("µs", 1e3)] where value >= size {
      let number = value / size
      guard number < 100 else { return "\(Int(number.rounded())) \(unit)" }
      return "\((number * 10).rounded() / 10) \(unit)"
    }
    return "\(nanoseconds) ns"
  }

  /// The first column is aligned to the left, the others to the right.
  private static func aligned(_ rows: [[String]]) -> [String] {
    let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      row.enumerated().map { column, cell in
        let space = String(repeating: " ", count: widths[column] - cell.count)
        return column == 0 ? cell + space : space + cell
      }.joined(separator: "  ")
    }
  }
}
