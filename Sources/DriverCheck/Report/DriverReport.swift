/// The outcome of each rule, for one driver.
public import Conform
internal import VirtioRegisters

/// The report about the driver of one device.
public struct DriverReport: Sendable {
  /// One rule.
  public struct Row: Sendable {
    public var clause: Clause
    public var outcome: Outcome
    /// How often it was checked and kept, and how often it was broken.
    public var kept: UInt64
    public var broken: UInt64
    /// The first few violations.
    public var violations: [Violation]
    /// Why there is no outcome; empty if there is one.
    public var reason: String

    /// For people.
    public var seen: String {
      switch outcome {
      case .notApplicable: reason
      case .broken:
        "\(broken) \(broken == 1 ? "time" : "times"); " + (violations.first?.description ?? "")
      default: "checked \(kept) \(kept == 1 ? "time" : "times")"
      }
    }
  }

  public var device: String
  /// What the driver accessed: an interface of registers, or a vhost-user front-end, which has them.
  public var bus: String
  /// One for each rule, in the order of the specification; never fewer.
  public var rows: [Row]

  init(device: String, interface: RegisterInterface?, findings: DriverFindings) {
    self.device = device
    bus = interface?.name ?? "vhost-user"
    rows = zip(DriverRules.all, findings.all).map { rule, account in
      let outcome: Outcome = account.broken > 0 ? .broken : account.kept > 0 ? .kept : .notApplicable
      return Row(
        clause: rule.clause, outcome: outcome, kept: account.kept, broken: account.broken, violations: account.violations,
        reason: outcome == .notApplicable ? Self.reason(rule, interface) : "")
    }
  }

  private static func reason(_ rule: DriverRule, _ interface: RegisterInterface?) -> String {
    switch rule.sight {
    case .unseen(let reason): return reason
    case .checked(let seam):
      guard let needs = seam.needs else { return "it did not come up" }
      guard let interface else { return "only with \(needs): over vhost-user the front-end has them" }
      return seam.fits(interface) ? "it did not come up" : "only with \(needs)"
    }
  }

  /// Broken rules that are binding: a MUST or a MUST NOT.
  public var failures: [Row] { rows.filter { $0.outcome == .broken && $0.clause.level.isBinding } }
  public var broken: [Row] { rows.filter { $0.outcome == .broken } }

  /// One line.
  public var summary: String {
    let kept = rows.count { $0.outcome == .kept }
    let broken = broken.count
    let musts = failures.count
    let verdict = musts == 0 ? "no MUST is broken" : "\(musts) MUST\(musts == 1 ? "" : "s") broken"
    return "the driver of \(device) (\(bus)): \(rows.count) rules, \(kept) kept, \(broken) broken, "
      + "\(rows.count - kept - broken) without an outcome, each with its reason; \(verdict)"
  }
}

extension RuleSeam {
  func fits(_ interface: RegisterInterface) -> Bool {
    switch self {
    case .rings, .kicks, .registers: true
    case .modern: interface.hasModern
    case .legacy: interface.hasLegacy
    case .mmio: interface == .mmio
    case .pci: interface.isPCI && interface.hasModern
    }
  }
}
