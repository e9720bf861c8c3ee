/// Each check is able to fail: the correct model passes it, and a model with one fault does not.
import GuestDriver
import Testing
import VirtioCore

@testable import Conform

@Suite struct ModelTests {
  /// The kinds of model.
  enum Kind: CaseIterable, Sendable { case plain, readOnly, noLifetime, noFlush, zoned, noAppends }

  static func subject(_ kind: Kind, _ face: ModelFace, _ fault: Fault? = nil) -> ModelSubject {
    ModelSubject(
      fault, face, isReadOnly: kind == .readOnly, hasLifetime: kind != .noLifetime, hasFlush: kind != .noFlush,
      withAppends: kind == .zoned ? true : kind == .noAppends ? false : nil)
  }

  static func findings(_ check: Check, _ kind: Kind, _ face: ModelFace, _ fault: Fault?) throws -> [Finding] {
    var settings = Settings()
    // Without a fault the limit is generous; an answer that a fault suppresses need not be waited for.
    settings.limit = fault == nil ? .seconds(110) : .seconds(1)
    let runner = Runner(settings: settings)
    let facts = try runner.facts(subject(kind, face, fault))
    return check.formats(facts).map { runner.make(check, $0, Self.subject(kind, face, fault), facts) }
  }

  @Test("a device without a fault passes every check", arguments: Kind.allCases, ModelFace.allCases)
  func sound(_ kind: Kind, _ face: ModelFace) throws {
    // There are no zones for legacy drivers.
    guard !face.isLegacy || kind != .zoned && kind != .noAppends else { return }
    // It should have FLUSH, and passes all other checks without it.
    for check in Check.all where kind != .noFlush || check.name != "flush-is-offered" {
      for finding in try Self.findings(check, kind, face, nil) {
        #expect(!finding.outcome.isFailure, "\(check.name), \(finding.ring): \(finding.outcome) \(finding.seen)")
      }
    }
  }

  @Test("each fault is caught by its check", arguments: Mutants.caught)
  func caught(_ mutant: Mutant) throws {
    let check = try #require(Check.all.first { $0.name == mutant.check })
    let findings = try Self.findings(check, mutant.kind, mutant.face, mutant.fault)
    #expect(findings.contains { $0.outcome.isFailure }, "\(findings.map { "\($0.ring): \($0.outcome) \($0.seen)" })")
  }

  /// A report has to name the clause that is broken, and no other.
  @Test(
    "a fault of suspension is found by the check of its clause, in both ring formats, and by no other check of draining",
    arguments: [
      (Fault.suspendsInFlight, "suspend.11"), (.suspendsHalfway, "suspend.11"), (.usesSuspended, "suspend.11"),
      (.drainsOneQueue, "suspend.11"), (.drainsUncalled, "suspend.12"), (.drainsCalledOnce, "suspend.12"),
      (.callsSuspended, "suspend.12"),
    ])
  func suspension(_ fault: Fault, _ clause: String) throws {
    for check in Check.all where !Set(check.clauses).isDisjoint(with: ["suspend.11", "suspend.12"]) {
      let findings = try Self.findings(check, .plain, .modern, fault)
      #expect(findings.map(\.ring) == ["split", "packed"])
      for finding in findings {
        // A device that uses no element before it is suspended has no calls to check.
        #expect(
          check.clauses.contains(clause) ? finding.outcome == .broken : !finding.outcome.isFailure,
          "\(check.name), \(finding.ring): \(finding.outcome) \(finding.seen)")
      }
    }
  }

  /// If nothing were ever in flight at the suspension, the checks would prove nothing.
  @Test("the model has something in flight when it is suspended") func drains() throws {
    for (name, words) in [
      ("suspension-drains", "48 of 96 requests were used before the device was suspended"),
      ("suspension-calls", "requests were used and called for"),
    ] {
      let check = try #require(Check.all.first { $0.name == name })
      for finding in try Self.findings(check, .plain, .modern, nil) {
        #expect(finding.seen.contains(words) && !finding.seen.hasPrefix("0 "), "\(finding.ring): \(finding.seen)")
      }
    }
  }

  @Test(
    "a device may refuse to work without a platform feature",
    arguments: [("access-platform-declined", FeatureSet.accessPlatform), ("order-platform-declined", .orderPlatform)],
    Insistence.allCases)
  func insists(_ case: (check: String, feature: FeatureSet), _ answer: Insistence) throws {
    let check = try #require(Check.all.first { $0.name == `case`.check })
    let subject = Self.subject(.plain, .modern)
    subject.device.insistence = (`case`.feature, answer)
    let runner = Runner()
    let finding = runner.make(check, .split, subject, try runner.facts(subject))
    #expect(finding.outcome == .kept, "\(finding.outcome): \(finding.seen)")
    #expect(!finding.seen.contains(": served"), "\(finding.seen)")
  }

  /// Has a fault until it is restarted.
  private final class UnsteadySubject: Subject {
    let name = "unsteady"
    let bus = Bus.mmio
    private var device = ModelDevice(.dropsWrites)
    func connect(_ settings: Settings) throws -> any DriverTransport { try ModelTransport(device) }
    func renew() { device = ModelDevice(nil) }
  }

  @Test("a failure that does not recur when the check runs alone does not count, and is reported") func unsteady() throws {
    let report = try Runner(only: ["read-and-write"]).run(UnsteadySubject())
    #expect(report.conforms && report.findings.map(\.outcome) == [.kept, .kept])
    #expect(report.findings.map(\.failedBefore) == [true, false])
    #expect(report.findings[0].seen.hasPrefix("broken at first: "), "\(report.findings[0].seen)")
    #expect(report.summary.hasSuffix("no MUST is broken; 1 failed at first, and not when run alone"), "\(report.summary)")
  }

  @Test("every check catches a fault, or has a reason why there is none")
  func everyCheck() {
    let caught = Set(Mutants.caught.map(\.check) + RegisterMutants.all.map(\.check) + WireMutants.all.map(\.check))
    for check in Check.all where !caught.contains(check.name) {
      #expect(Mutants.none[check.name] != nil, "\(check.name) was never seen to fail")
    }
    for name in Mutants.none.keys { #expect(!caught.contains(name), "\(name) catches a fault: take it off the list") }
    let names = Set(Check.all.map(\.name))
    for name in caught.union(Mutants.none.keys) { #expect(names.contains(name), "\(name) is no check") }
  }
}
