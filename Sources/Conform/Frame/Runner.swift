/// Runs the checks one after the other, and reports the outcome of each.
internal import GuestDriver
internal import VhostUser
internal import VirtioCore

public struct Runner {
  public var settings: Settings
  /// Words of `--only`; empty: everything.
  public var only: [String]
  /// Called before each check, with the number of checks done and the total.
  public var progress: ((_ check: String, _ done: Int, _ all: Int) -> Void)?

  public init(settings: Settings = Settings(), only: [String] = []) {
    self.settings = settings
    self.only = only
  }

  /// The checks that `--only` selects.
  public var checks: [Check] {
    only.isEmpty ? Check.all : Check.all.filter { check in only.contains { check.matches($0) } }
  }

  /// Runs every check on a device.
  ///
  /// - Throws: if a driver cannot reach any device.
  public func run(_ subject: any Subject) throws -> Report {
    let facts = try Self.facts(subject, settings)
    let plan = checks.flatMap { check in check.formats(facts).map { (check, $0) } }
    var report = Report(subject: subject.name, bus: facts.bus.rawValue, seed: settings.seed, offered: facts.offered)
    var isGone = false
    for (number, (check, format)) in plan.enumerated() {
      progress?(check.name, number, plan.count)
      if isGone {
        report.findings.append(
          Finding(
            check: check.name, clauses: check.clauses(format), ring: "-", outcome: .notApplicable,
            seen: "not run: the device is gone", seconds: 0))
        continue
      }
      var finding = make(check, format, subject, facts)
      if finding.outcome.isFailure {
        let first = finding
        // Alone, on a fresh device if possible.
        try? subject.renew()
        if (try? Self.facts(subject, settings)) == nil {
          isGone = true
        } else {
          let again = make(check, format, subject, facts)
          // If it could not be run, the first result stands.
          if again.outcome != .notApplicable { finding = again }
          if again.outcome == .kept || again.outcome == .rejected {
            finding.failedBefore = true
            finding.seen = "\(first.outcome.rawValue) at first: \(first.seen); not when it was run alone: \(again.seen)"
          }
          try? subject.renew()
          isGone = (try? Self.facts(subject, settings)) == nil
        }
      }
      report.findings.append(finding)
    }
    report.isComplete = !isGone
    return report
  }

  static func facts(_ subject: any Subject, _ settings: Settings) throws -> Facts {
    let transport = try subject.connect(settings)
    let facts = try Facts(subject, transport)
    try transport.reset()
    return facts
  }

  /// One check, once.
  func make(_ check: Check, _ format: RingFormat, _ subject: any Subject, _ facts: Facts) -> Finding {
    let ring = check.rings == .once ? "-" : format.rawValue
    var finding = Finding(
      check: check.name, clauses: check.clauses(format), ring: ring, outcome: .notApplicable, seen: "", seconds: 0)
    for need in check.needs {
      if let reason = need.missing(in: facts) {
        finding.seen = reason
        return finding
      }
    }
    if format == .packed, !facts.offered.contains(.packedRing) || !facts.isModern {
      finding.seen = "the device does not offer RING_PACKED"
      return finding
    }
    let begin = ContinuousClock.now
    let bench = Bench(subject, facts, format, settings, name: check.name)
    (finding.outcome, finding.seen) = Self.judge { try check.body(bench) }
    if bench.isOverfull { (finding.outcome, finding.seen) = Self.judge { throw Trouble.noRoom } }
    bench.close()
    finding.seconds = (ContinuousClock.now - begin) / .seconds(1)
    return finding
  }

  private static func judge(_ body: () throws -> Seen) -> (Outcome, String) {
    do {
      let seen = try body()
      return (seen.outcome, seen.words)
    } catch Trouble.broken(let words) {
      return (.broken, words)
    } catch Trouble.wedged(let words) {
      return (.wedged, words)
    } catch Trouble.notApplicable(let words) {
      return (.notApplicable, words)
    } catch is Link.Gone {
      return (.wedged, "the back-end ended the connection")
    } catch let error as DriverError {
      switch error {
      case .noDevice, .timeout: return (.wedged, "\(error)")
      case .memoryFull, .system, .badRegion, .badRequest: return (.notApplicable, "could not be run here: \(error)")
      default: return (.broken, "\(error)")
      }
    } catch { return (.broken, "\(error)") }
  }

  /// What a device says about itself.
  package func facts(_ subject: any Subject) throws -> Facts { try Self.facts(subject, settings) }
}
