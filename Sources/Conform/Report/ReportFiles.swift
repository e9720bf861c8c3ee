/// Reports for programs, and to pass on: JSON, JUnit's XML, one page of HTML.

extension Report {
  /// What `--json` prints.
  public struct Document: Encodable, Sendable {
    public struct Device: Encodable, Sendable {
      var device: String
      var transport: String
      var seed: UInt64
      var conforms: Bool
      var complete: Bool
      var checks: [Entry]
    }

    struct Entry: Encodable, Sendable {
      var check: String
      var ring: String
      var clauses: [String]
      var level: String
      var outcome: String
      var seen: String
      var seconds: Double
      var failedBefore: Bool
    }

    struct Row: Encodable, Sendable {
      var id: String
      var section: String
      var level: String
      var text: String
      var outcome: String
      var check: String
      var seen: String
    }

    var devices: [Device]
    var clauses: [Row]
  }

  public static func document(_ reports: [Report]) -> Document {
    Document(
      devices: reports.map { report in
        Document.Device(
          device: report.subject, transport: report.bus, seed: report.seed, conforms: report.conforms,
          complete: report.isComplete,
          checks: report.findings.map { finding in
            Document.Entry(
              check: finding.check, ring: finding.ring, clauses: finding.clauses, level: finding.level.rawValue,
              outcome: finding.outcome.rawValue, seen: finding.seen, seconds: finding.seconds,
              failedBefore: finding.failedBefore)
          })
      },
      clauses: clauses(reports).map { result in
        Document.Row(
          id: result.clause.id, section: result.clause.section, level: result.clause.level.rawValue, text: result.clause.words,
          outcome: result.outcome.rawValue, check: result.check, seen: result.seen)
      })
  }

  /// Escapes text for XML or HTML, also in an attribute; characters that no document may contain are dropped.
  package static func escaped(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "&": result += "&amp;"
      case "<": result += "&lt;"
      case ">": result += "&gt;"
      case "\"": result += "&quot;"
      case "\t", "\n": result += " "
      case _ where scalar.value < 0x20 || (0xfffe...0xffff).contains(scalar.value): result += "?"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }

  /// One test case for each check; a failure is a broken MUST or a dead device.
  public static func junit(_ reports: [Report]) -> String {
    var lines = ["<?xml version=\"1.0\" encoding=\"UTF-8\"?>", "<testsuites>"]
    for report in reports {
      let skipped = report.count(.notApplicable)
      lines.append(
        "<testsuite name=\"\(escaped(report.subject))\" tests=\"\(report.findings.count)\" failures=\"\(report.failures.count)\" "
          + "skipped=\"\(skipped)\">")
      for finding in report.findings {
        let ring = finding.ring == "-" ? "" : " (\(finding.ring))"
        let head = "<testcase classname=\"conform\" name=\"\(escaped(finding.check + ring))\" time=\"\(finding.seconds)\""
        let words = "\(finding.clauses.joined(separator: " ")), \(finding.level.rawValue): \(finding.seen)"
        switch finding.outcome {
        case .notApplicable: lines.append("\(head)><skipped message=\"\(escaped(finding.seen))\"/></testcase>")
        case _ where finding.isFailure:
          lines.append("\(head)><failure type=\"\(finding.outcome.rawValue)\" message=\"\(escaped(words))\"/></testcase>")
        default: lines.append("\(head)><system-out>\(escaped("\(finding.outcome.rawValue): \(words)"))</system-out></testcase>")
        }
      }
      lines.append("</testsuite>")
    }
    lines.append("</testsuites>")
    return lines.joined(separator: "\n") + "\n"
  }

  /// A self-contained page.
  public static func html(_ reports: [Report]) -> String {
    let rows = clauses(reports).map { result in
      let kind = result.outcome == .notApplicable ? "none" : result.outcome.rawValue
      let cells = [
        result.clause.id, result.clause.section, result.clause.level.rawValue, result.outcome.rawValue, result.clause.words,
        result.seen + (result.check.isEmpty ? "" : " [\(result.check)]"),
      ]
      return "<tr class=\"\(kind)\">" + cells.map { "<td>\(escaped($0))</td>" }.joined() + "</tr>"
    }
    return page(
      "virtio-blk conformance",
      """
      <ul>
      \(reports.map { "<li>\(escaped($0.summary))</li>" }.joined(separator: "\n"))
      </ul>
      <p>\(escaped(coverage(reports)))</p>
      <table><tr><th>clause</th><th>section</th><th>level</th><th>outcome</th><th>what it asks for</th><th>what was seen</th></tr>
      \(rows.joined(separator: "\n"))
      </table>
      """)
  }

  /// A page of HTML around its contents.
  package static func page(_ title: String, _ body: String) -> String {
    """
    <!DOCTYPE html>
    <html lang="en"><head><meta charset="utf-8"><title>\(title)</title>
    <style>
    body { font: 14px sans-serif; margin: 2em; max-width: 90em }
    table { border-collapse: collapse }
    td, th { padding: 2px 8px; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
    .kept td:nth-child(4), .rejected td:nth-child(4) { color: #060 }
    .broken td, .wedged td { background: #fdd }
    .none { color: #777 }
    </style></head><body>
    <h1>\(title)</h1>
    \(body)
    </body></html>

    """
  }
}
