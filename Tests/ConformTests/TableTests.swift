/// The tables: every clause is accounted for, and nothing in them is stale.
import Foundation
import Testing

@testable import Conform

@Suite struct TableTests {
  @Test("every clause has a check or a written reason, and none has both")
  func everyClause() {
    let checked = Set(Check.all.flatMap(\.clauses))
    for clause in ClauseTable.all where !checked.contains(clause.id) {
      #expect(!Reasons.reason(for: clause).isEmpty, "\(clause.id) has neither check nor reason: \(clause.words)")
    }
    for id in Reasons.ids {
      #expect(ClauseTable.byID[id] != nil, "there is a reason for \(id), which is not a clause")
      #expect(!checked.contains(id), "\(id) has a check and a reason why it has none")
    }
  }

  @Test("checks have unique names and refer to existing clauses")
  func checks() {
    #expect(Set(Check.all.map(\.name)).count == Check.all.count)
    for check in Check.all {
      #expect(!check.clauses.isEmpty, "\(check.name) refers to no clause")
      for id in check.clauses { #expect(ClauseTable.byID[id] != nil, "\(check.name) refers to \(id), which is not a clause") }
    }
  }

  @Test("the counts in Docs/conformance.md are those of the tables") func documented() throws {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let text = try String(contentsOf: root.appendingPathComponent("Docs/conformance.md"), encoding: .utf8)
      .split(whereSeparator: \.isWhitespace).joined(separator: " ")
    let covered = Set(Check.all.flatMap(\.clauses)).count
    for words in [
      "\(Check.all.count) checks cover \(covered) of the \(ClauseTable.all.count) clauses",
      "All \(Check.all.count) checks were seen to fail", "(\(Mutants.caught.count) pairs of check and fault)",
      "in registers behind a layer that falsifies them (\(RegisterMutants.all.count))", "(\(WireMutants.all.count)).",
    ] { #expect(text.contains(words), "it does not contain: \(words)") }
  }
}
