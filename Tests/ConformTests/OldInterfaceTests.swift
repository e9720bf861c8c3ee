/// The legacy interfaces have mutants of their own: a check that is right about a modern device need not be about these.
import Testing
import VirtioRegisters

@testable import Conform

@Suite struct OldInterfaceTests {
  /// One of our own devices, and the model that a driver sees in the same way.
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

  /// By a fault of the model, or by registers that lie.
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

  @Test("every check that applies to an old interface catches a fault of one", arguments: pairs)
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
    // Most of what a driver can see has nothing to do with registers.
    #expect(shown > 100, "only \(shown)")
  }
}
