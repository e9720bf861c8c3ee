/// Everything that was found out about one device.
public import VirtioCore

public struct Report: Sendable {
  public var subject: String
  public var bus: String
  public var seed: UInt64
  public var offered: FeatureSet
  public var findings: [Finding] = []
  /// False: the device went away during the run and did not come back.
  public var isComplete = true

  public init(subject: String, bus: String, seed: UInt64, offered: FeatureSet) {
    self.subject = subject
    self.bus = bus
    self.seed = seed
    self.offered = offered
  }

  /// Why the device does not conform.
  public var failures: [Finding] { findings.filter(\.isFailure) }

  public func count(_ outcome: Outcome) -> Int { findings.count { $0.outcome == outcome } }
  public var conforms: Bool { failures.isEmpty && isComplete }
}

/// The outcome of one clause: the worst of its checks, or why there is none.
public struct ClauseResult: Sendable {
  public var clause: Clause
  /// The worst one, if several devices were checked.
  public var outcome: Outcome
  /// The check that determined it; empty: no check covers the clause.
  public var check: String
  public var seen: String
}

extension Report {
  /// One for each clause, in the order of the specification; never fewer.
  public static func clauses(_ reports: [Report]) -> [ClauseResult] {
    var found: [String: [(Report, Finding)]] = [:]
    for report in reports {
      for finding in report.findings { for id in finding.clauses { found[id, default: []].append((report, finding)) } }
    }
    return ClauseTable.all.map { clause in
      guard let (report, finding) = found[clause.id]?.max(by: { $0.1.outcome.weight < $1.1.outcome.weight }) else {
        return ClauseResult(clause: clause, outcome: .notApplicable, check: "", seen: Reasons.reason(for: clause))
      }
      let place = finding.outcome.isFailure && reports.count > 1 ? "\(report.subject): " : ""
      return ClauseResult(clause: clause, outcome: finding.outcome, check: finding.check, seen: place + finding.seen)
    }
  }
}
