/// What happened between two samples, as lines.
internal import VirtioBlkDevice
internal import VirtioCore

package enum TopTable {
  /// One disk's line.
  private struct Row {
    var name: String
    var state: String
    var reads = 0.0
    var writes = 0.0
    var others = 0.0
    var bytesRead = 0.0
    var bytesWritten = 0.0
    var depth = 0
    var latencies = LatencyHistogram()
    var errors: UInt64 = 0

    var rate: Double { reads + writes + others }

    mutating func add(_ other: Row) {
      reads += other.reads
      writes += other.writes
      others += other.others
      bytesRead += other.bytesRead
      bytesWritten += other.bytesWritten
      depth &+= other.depth
      latencies.add(other.latencies)
      errors &+= other.errors
    }
  }

  /// - Parameters:
  ///   - seconds: the time between the two samples.
  ///   - width: of the terminal; `nil`: no limit.
  ///   - rows: lines that there is room for; `nil`: no limit.
  package static func lines(
    from before: Operator.Metrics, to now: Operator.Metrics, seconds: Double, width: Int?, rows limit: Int?
  ) -> [String] {
    let old = Dictionary(before.disks.map { ($0.disk, $0) }, uniquingKeysWith: { first, _ in first })
    // A disk that was added in between has done all of its work since.
    var rows = now.disks.map { row($0, since: old[$0.disk], seconds) }
    rows.sort { ($1.rate, $0.name) < ($0.rate, $1.name) }
    var total = Row(name: "all", state: "")
    for row in rows { total.add(row) }
    // The title, the header, the total, and the line about disks that are left out.
    let room = limit.map { max($0 - 4, 1) } ?? rows.count
    let left = rows.count - room
    let longest = rows.map(\.name.count).max() ?? 0
    let name = max(4, min(width.map { $0 - numbersWidth } ?? longest, longest))
    var lines = [title(before.process, now, seconds), head(name)]
    lines += rows.prefix(room).map { line($0, name) }
    if left > 0 { lines.append("… and \(left) more") }
    if rows.count > 1 { lines.append(line(total, name)) }
    return lines.map { fitted($0, width) }
  }

  private static func row(_ disk: Operator.DiskMetrics, since old: Operator.DiskMetrics?, _ seconds: Double) -> Row {
    func difference(_ value: (Operator.Counters) -> UInt64) -> UInt64 {
      let (now, then) = (value(disk.counters), old.map { value($0.counters) } ?? 0)
      // Another disk of the same name starts over.
      return now >= then ? now - then : now
    }
    func rate(_ value: (Operator.Counters) -> UInt64) -> Double { Double(difference(value)) / max(seconds, 0.001) }
    var latencies = LatencyHistogram()
    for (kind, histogram) in disk.latencies {
      let all = histogram.histogram
      latencies.add(old?.latencies[kind].map { all.since($0.histogram) } ?? all)
    }
    return Row(
      name: disk.disk, state: disk.state.rawValue, reads: rate(\.reads), writes: rate(\.writes),
      others: rate { $0.flushes &+ $0.discards &+ $0.writeZeroes &+ $0.others }, bytesRead: rate(\.bytesRead),
      bytesWritten: rate(\.bytesWritten), depth: disk.depths.reduce(0, &+), latencies: latencies,
      errors: difference(\.failures))
  }

  // MARK: Text

  private static func title(_ before: Operator.ProcessMetrics, _ now: Operator.Metrics, _ seconds: Double) -> String {
    let process = now.process
    let time = process.cpuTime >= before.cpuTime ? Double(process.cpuTime - before.cpuTime) / 1e9 : 0
    let share = Int((time / max(seconds, 0.001) * 100).rounded())
    let disks = now.disks.count == 1 ? "1 disk" : "\(now.disks.count) disks"
    return "\(printable(process.program))  \(disks)  CPU \(share) %  memory \(ByteSize.describe(process.residentMemory))  "
      + "files \(process.openFiles)"
  }

  /// The widths of all columns but the name, which has the rest of the line.
  private static let widths = [6, 5, 5, 5, 5, 5, 6, 5, 5, 4]
  private static let numbersWidth = widths.reduce(0) { $0 + $1 + 1 }

  private static func head(_ name: Int) -> String {
    columns(["disk", "state", "r/s", "w/s", "other", "read", "write", "flight", "p50", "p99", "err"], name)
  }

  private static func line(_ row: Row, _ name: Int) -> String {
    columns(
      [
        shortened(printable(row.name), name), row.state, count(row.reads), count(row.writes), count(row.others),
        bytes(row.bytesRead), bytes(row.bytesWritten), "\(row.depth)", time(row.latencies.quantile(0.5)),
        time(row.latencies.quantile(0.99)), count(Double(row.errors)),
      ], name)
  }

  /// The first two columns are aligned to the left, numbers to the right.
  private static func columns(_ texts: [String], _ name: Int) -> String {
    zip(texts, [name] + widths).enumerated().map { index, column in
      let (text, width) = column
      let gap = String(repeating: " ", count: max(width - text.count, 0))
      return index < 2 ? text + gap : gap + text
    }.joined(separator: " ")
  }

  /// Keeps the end of the name, which says more than its beginning.
  private static func shortened(_ name: String, _ width: Int) -> String {
    name.count <= width ? name : "…" + name.suffix(width - 1)
  }

  private static func fitted(_ line: String, _ width: Int?) -> String {
    guard let width, line.count > width else { return line }
    return String(line.prefix(width))
  }

  /// At most five characters: 0, 12, 999, 1.2k, 34k, 5.6M.
  private static func count(_ value: Double) -> String { scaled(value, ["", "k", "M", "G", "T"], 1000) }

  /// The same in powers of 1024.
  private static func bytes(_ value: Double) -> String { scaled(value, ["", "K", "M", "G", "T"], 1024) }

  private static func scaled(_ value: Double, _ units: [String], _ step: Double) -> String {
    var (value, unit) = (value, 0)
    while value >= 999.5, unit + 1 < units.count {
      value /= step
      unit += 1
    }
    let tenths = Int((value * 10).rounded())
    return unit > 0 && tenths < 100 ? "\(tenths / 10).\(tenths % 10)\(units[unit])" : "\(Int(value.rounded()))\(units[unit])"
  }

  /// - Parameter nanoseconds: `nil` if there was no request.
  private static func time(_ nanoseconds: UInt64?) -> String {
    guard let nanoseconds else { return "-" }
    var (value, unit) = (Double(nanoseconds) / 1000, 0)
    let units = ["us", "ms", "s"]
    while value >= 999.5, unit + 1 < units.count {
      value /= 1000
      unit += 1
    }
    let tenths = Int((value * 10).rounded())
    return tenths < 100 ? "\(tenths / 10).\(tenths % 10)\(units[unit])" : "\(Int(value.rounded()))\(units[unit])"
  }
}
