/// Each check is able to fail: the sound model passes it, and a model with one fault does not.
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
    // What has no fault is given time; what a fault keeps silent need not be waited for.
    settings.limit = fault == nil ? .seconds(110) : .seconds(1)
    let runner = Runner(settings: settings)
    let facts = try runner.facts(subject(kind, face, fault))
    return check.formats(facts).map { runner.make(check, $0, Self.subject(kind, face, fault), facts) }
  }

  @Test("a device without fault is found to have none", arguments: Kind.allCases, ModelFace.allCases)
  func sound(_ kind: Kind, _ face: ModelFace) throws {
    // There are no zones for legacy drivers.
    guard !face.isLegacy || kind != .zoned && kind != .noAppends else { return }
    // It ought to have FLUSH, and is otherwise as good without it.
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

  @Test(
    "a device that does not work without a platform feature uses a right",
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

  @Test("every check catches a fault, or says why there is none for it")
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
