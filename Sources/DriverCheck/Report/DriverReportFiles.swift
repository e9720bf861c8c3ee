/// Reports about drivers: for the terminal, for programs, and as pages to pass on.
internal import Conform

extension DriverReport {
  private static func padded(_ text: String, _ width: Int) -> String {
    text.count >= width ? text : text + String(repeating: " ", count: width - text.count)
  }

  /// A table of rules, and a line of counts for each device.
  ///
  /// - Parameter isWhole: all rules, also those that are kept or have no outcome.
  public static func text(_ reports: [DriverReport], isWhole: Bool) -> String {
    var lines: [String] = []
    for report in reports {
      let rows = report.rows.filter { isWhole || $0.outcome == .broken }
      if !rows.isEmpty {
        lines.append("\(padded("rule", 22)) \(padded("section", 12)) \(padded("level", 10)) \(padded("outcome", 8)) seen")
      }
      for row in rows {
        lines.append(
          "\(padded(row.clause.id, 22)) \(padded(row.clause.section, 12)) \(padded(row.clause.level.rawValue, 10)) "
            + "\(padded(row.outcome.rawValue, 8)) \(row.seen)")
        for violation in row.violations.dropFirst() { lines.append(padded("", 56) + violation.description) }
      }
      if !rows.isEmpty { lines.append("") }
      lines.append(report.summary)
    }
    return lines.joined(separator: "\n")
  }

  /// The JSON document.
  public struct Document: Encodable, Sendable {
    public struct Device: Encodable, Sendable {
      var device: String
      var transport: String
      var conforms: Bool
      var rules: [Rule]
    }

    struct Rule: Encodable, Sendable {
      var id: String
      var section: String
      var level: String
      var text: String
      var outcome: String
      var kept: UInt64
      var broken: UInt64
      var reason: String
      var violations: [Moment]
    }

    struct Moment: Encodable, Sendable {
      var nanoseconds: UInt64
      var queue: Int?
      var place: String
      var bytes: [UInt8]
      var words: String
    }

    var devices: [Device]
  }

  public static func document(_ reports: [DriverReport]) -> Document {
    Document(
      devices: reports.map { report in
        Document.Device(
          device: report.device, transport: report.bus, conforms: report.failures.isEmpty,
          rules: report.rows.map { row in
            Document.Rule(
              id: row.clause.id, section: row.clause.section, level: row.clause.level.rawValue, text: row.clause.words,
              outcome: row.outcome.rawValue, kept: row.kept, broken: row.broken, reason: row.reason,
              violations: row.violations.map {
                Document.Moment(
                  nanoseconds: $0.nanoseconds, queue: $0.queue, place: $0.place, bytes: $0.bytes, words: $0.words)
              })
          })
      })
  }

  /// One test case for each rule; a failure is a broken MUST.
  public static func junit(_ reports: [DriverReport]) -> String {
    var lines = ["<?xml version=\"1.0\" encoding=\"UTF-8\"?>", "<testsuites>"]
    for report in reports {
      let skipped = report.rows.count { $0.outcome == .notApplicable }
      lines.append(
        "<testsuite name=\"\(Report.escaped(report.device))\" tests=\"\(report.rows.count)\" "
          + "failures=\"\(report.failures.count)\" skipped=\"\(skipped)\">")
      for row in report.rows {
        let head = "<testcase classname=\"check-driver\" name=\"\(Report.escaped(row.clause.id))\""
        let words = Report.escaped("\(row.clause.level.rawValue): \(row.seen)")
        switch row.outcome {
        case .notApplicable: lines.append("\(head)><skipped message=\"\(Report.escaped(row.seen))\"/></testcase>")
        case .broken where row.clause.level.isBinding:
          lines.append("\(head)><failure type=\"broken\" message=\"\(words)\"/></testcase>")
        default: lines.append("\(head)><system-out>\(row.outcome.rawValue): \(words)</system-out></testcase>")
        }
      }
      lines.append("</testsuite>")
    }
    lines.append("</testsuites>")
    return lines.joined(separator: "\n") + "\n"
  }

  /// A self-contained page.
  public static func html(_ reports: [DriverReport]) -> String {
    let parts = reports.map { report in
      let rows = report.rows.map { row in
        let kind = row.outcome == .notApplicable ? "none" : row.outcome.rawValue
        let more = row.violations.dropFirst().map(\.description)
        let cells = [
          row.clause.id, row.clause.section, row.clause.level.rawValue, row.outcome.rawValue, row.clause.words,
          ([row.seen] + more).joined(separator: "; "),
        ]
        return "<tr class=\"\(kind)\">" + cells.map { "<td>\(Report.escaped($0))</td>" }.joined() + "</tr>"
      }
      return """
        <p>\(Report.escaped(report.summary))</p>
        <table><tr><th>rule</th><th>section</th><th>level</th><th>outcome</th><th>what it asks for</th><th>what was seen</th></tr>
        \(rows.joined(separator: "\n"))
        </table>
        """
    }
    return Report.page("virtio-blk driver check", parts.joined(separator: "\n"))
  }
}
