/// The conditions saved with a result, and tables that fit the terminal.
import Foundation
import Testing
import VirtioBlkDevice

@testable import Bench

@Suite struct ConditionsTests {
  @Test func aDeviceIsDescribed() throws {
    let scratch = try Scratch()
    let conditions = Conditions(try scratch.device(), setup: UringSetup(), waiting: .poll(microseconds: 20))
    #expect(conditions.engine.map { $0 != "auto" } == true)
    #expect(conditions.waiting == "poll:20")
    #expect(conditions.imageSize.map { $0 > 0 } == true)
    #expect(!conditions.kernel.isEmpty && conditions.processors >= 1)
    let decoded = try JSONDecoder().decode(Conditions.self, from: try JSONEncoder().encode(conditions))
    #expect(decoded == conditions)
  }

  @Test func anImageWithHolesIsWarnedOf() {
    var conditions = Conditions()
    (conditions.imageSize, conditions.holes) = (1 << 20, 1 << 19)
    #expect(conditions.holesWarning?.hasPrefix("50 % of the image are holes") == true)
    conditions.holes = 0
    #expect(conditions.holesWarning == nil)
  }

  @Test func setUpsAreSpeltAsTheyAreTyped() {
    #expect(UringSetup().words == "deferred")
    var setup = UringSetup()
    setup.completion = .submissionThread(cpu: 3)
    setup.registersBuffers = true
    setup.minimumWait = 8
    setup.handover = .whole
    #expect(setup.words == "sqpoll=3,buffers,wait=8,whole")
  }

  private func columns(_ count: Int) -> [TableColumn] {
    [TableColumn(title: "", alignment: .left, values: ["first row", "second"])]
      + (0..<count).map { TableColumn(title: "figure \($0)", values: ["\($0)", "\($0 * 1000)"]) }
  }

  @Test(arguments: [40, 80, 132]) func tablesFitTheTerminal(width: Int) {
    let text = ColumnTable.text(columns(14), width: width)
    #expect(text.split(separator: "\n").allSatisfy { $0.count <= width })
    for number in 0..<14 { #expect(text.contains("figure \(number)")) }
    #expect(text.split(separator: "\n").filter { $0.hasPrefix("first row") }.count > (width < 132 ? 1 : 0))
  }

  /// Conditions and explanations are wrapped between words; a table that fits is unchanged.
  @Test(arguments: [40, 80]) func longLinesAreFolded(width: Int) {
    let long = "  " + (1...40).map { "word\($0)" }.joined(separator: " ")
    let table = ColumnTable.text(columns(14), width: width)
    let text = OutputWidth.folded(long + "\n\n" + table, width: width)
    #expect(text.split(separator: "\n").allSatisfy { $0.count <= width })
    #expect(text.hasSuffix("\n\n" + table))
    let words = text.dropLast(table.count).split { $0 == " " || $0 == "\n" }
    #expect(words.map(String.init) == (1...40).map { "word\($0)" })
    #expect(text.split(separator: "\n").dropFirst().first?.hasPrefix("    word") == true)
    #expect(OutputWidth.folded(long, width: nil) == long)
  }

  @Test func withoutATerminalATableIsWhole() {
    let lines = ColumnTable.text(columns(14), width: nil).split(separator: "\n")
    #expect(lines.count == 4)
  }

  @Test func columnsWithoutValuesAreLeftOut() {
    let text = ColumnTable.text(columns(1) + [TableColumn(title: "empty", values: ["", ""])], width: nil)
    #expect(!text.contains("empty"))
  }
}
