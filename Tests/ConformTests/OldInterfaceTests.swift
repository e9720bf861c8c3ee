/// The legacy interfaces have their own mutants: a check that works for modern devices may not work for them.
import Testing
import VirtioRegisters

@testable import Conform

@Suite struct OldInterfaceTests {
  /// One of this project's devices, and the model with the same interface.
  struct Pair: Sendable, CustomTestStringConvertible {
    var setup: OwnSetup
    var face: ModelFace
    var testDescription: String { setup.name }
  }

  static let pairs = [
    Pair(setup: OwnSetup(.mmioLegacy), face: .mmioLegacy), Pair(setup: OwnSetup(.pciLegacy), face: .pciLegacy),
    Pair(setup: OwnSetup(.pciTransitional, prefersLegacy: true), face: .pciLegacy),
    Pair(setup: OwnSetup(.pciTransitional), face: .transitional),
  ]

  /// Whether the check catches a fault of the model, or registers that lie.
  private static func isShown(_ check: Check, _ pair: Pair) throws -> Bool {
    let hasRegisters = RegisterMutants.all.contains {
      $0.check == check.name && $0.interface == pair.setup.interface && $0.prefersLegacy == pair.setup.prefersLegacy
    }
    if hasRegisters { return true }
    return try Mutants.caught.contains { mutant in
      guard mutant.check == check.name else { return false }
      return try ModelTests.findings(check, mutant.kind, pair.face, mutant.fault).contains { $0.outcome.isFailure }
    }
  }

  @Test("every check that applies to a legacy interface catches a fault of one", arguments: pairs)
  func everyCheck(_ pair: Pair) throws {
    let own = try OwnSubject(pair.setup)
    let runner = Runner()
    let facts = try runner.facts(own)
    var shown = 0
    for check in Check.all {
      if try Self.isShown(check, pair) {
        shown += 1
        continue
      }
      for finding in check.formats(facts).map({ runner.make(check, $0, own, facts) }) {
        #expect(
          finding.outcome == .notApplicable,
          "\(check.name), \(finding.ring), applies here (\(finding.outcome)) and was not seen to fail")
      }
    }
    // Most checks do not depend on registers.
    #expect(shown > 100, "only \(shown)")
  }
}
