/// Reports for the terminal: every failure with what was observed, and the counts.

extension Report {
  private static func padded(_ text: String, _ width: Int) -> String {
    text.count >= width ? text : text + String(repeating: " ", count: width - text.count)
  }

  /// A table of clauses, and a line of counts for each device.
  ///
  /// - Parameter isWhole: all clauses, also those that are kept or do not apply.
  public static func text(_ reports: [Report], isWhole: Bool) -> String {
    var lines: [String] = []
    let results = clauses(reports).filter { isWhole || $0.outcome.isFailure }
    if !results.isEmpty {
      lines.append("\(padded("clause", 22)) \(padded("section", 12)) \(padded("level", 10)) \(padded("outcome", 8)) seen")
      for result in results {
        let clause = result.clause
        lines.append(
          "\(padded(clause.id, 22)) \(padded(clause.section, 12)) \(padded(clause.level.rawValue, 10)) "
            + "\(padded(result.outcome.rawValue, 8)) \(result.seen)\(result.check.isEmpty ? "" : " [\(result.check)]")")
      }
      lines.append("")
    }
    for report in reports { lines.append(report.summary) }
    if reports.count > 1 || isWhole { lines.append(coverage(reports)) }
    return lines.joined(separator: "\n")
  }

  /// One line.
  public var summary: String {
    let parts = Outcome.allCases.compactMap { outcome in
      let number = count(outcome)
      return number > 0 ? "\(number) \(outcome.rawValue)" : nil
    }
    let musts = failures.count
    let verdict = musts == 0 ? "no MUST is broken" : "\(musts) \(musts == 1 ? "failure" : "failures")"
    let unsteady = findings.count(where: \.failedBefore)
    let again = unsteady == 0 ? "" : "; \(unsteady) failed at first, and not when run alone"
    return
      "\(subject): \(findings.count) checks, \(parts.joined(separator: ", ")); \(verdict)\(again)\(isComplete ? "" : "; the device went away")"
  }

  /// How many clauses have an outcome.
  public static func coverage(_ reports: [Report]) -> String {
    let results = clauses(reports)
    let seen = results.count { $0.outcome != .notApplicable }
    return "\(results.count) clauses: \(seen) have an outcome, \(results.count - seen) do not apply, each with its reason"
  }
}
