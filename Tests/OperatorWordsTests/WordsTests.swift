/// How an operator's words are parsed, and that they can be printed and parsed again.
import Testing
import VirtioBlkDevice

@testable import OperatorWords

@Suite struct WordsTests {
  /// `nil`: it is not a limit.
  @Test(
    arguments: [
      ("none", "none"), ("iops=2000", "iops=2000/200"), ("iops=1", "iops=1/1"), ("iops=2000/1", "iops=2000/1"),
      ("write-bytes=50M/100M,iops=5", "iops=5/1,write-bytes=52428800/104857600"), ("iops=none", "none"),
      ("read-iops=5,read-iops=6", nil), ("iops", nil), ("iops=", nil), ("iops=0", nil), ("iops=5/0", nil), ("iops=5/6/7", nil),
      ("iops=5,", nil), ("", nil), ("IOPS=5", nil), ("iops=none/5", nil), ("none,iops=5", nil), ("iops=-5", nil),
      ("iops=18446744073709551615", "iops=1000000000000000/100000000000000"),
    ] as [(String, String?)])
  func limits(text: String, words: String?) throws {
    let change = LimitChange(argument: text)
    #expect(change?.limits.words == words, "\(text)")
    guard let change else { return }
    #expect(LimitChange(argument: change.limits.words)?.limits == change.limits, "\(text)")
  }

  @Test func nothingIsSaidTwiceByTheSameWord() throws {
    let requests: [(limits: [String: Operator.Limit?], words: String)] = [
      (["iops": Operator.Limit(rate: 5)], "iops=5/1"), (["iops": nil], "none"), (["none": nil], "none"), ([:], "none"),
    ]
    for (limits, words) in requests {
      let change = try Operator.change(limits)
      #expect(change.limits.words == words)
      // As it is sent over the control socket.
      #expect(try Operator.change(Operator.limits(change)) == change)
    }
    for wrong in [
      ["iop": Operator.Limit(rate: 5)], ["iops": Operator.Limit(rate: 0)], ["iops": Operator.Limit(rate: 1, burst: 0)],
    ] {
      #expect(throws: OperatorRefusal.self) { _ = try Operator.change(wrong) }
    }
  }

  @Test(arguments: [
    "sleep", "poll:50", "adaptive:0", "busy", "poll:-1", "poll", "sleep:1", "poll:1000001", "", ":", "poll:50:1",
  ])
  func waysToWaitCanBeTypedBack(text: String) {
    guard let waiting = Waiting(argument: text) else { return }
    #expect(Waiting(argument: waiting.defaultValueDescription) == waiting)
    #expect(waiting.defaultValueDescription == text)
  }

  @Test(
    arguments: [
      ("blk-fil", "blk-file"), ("redonly", "read-only"), ("seriall", "serial"), ("x", nil), ("", nil),
      (String(repeating: "serial", count: 100), nil),
    ] as [(String, String?)])
  func theWordThatWasMeant(word: String, meant: String?) {
    #expect(CloseWord.find(to: word, among: ServeDisk.Word.allCases.map(\.rawValue)) == meant)
  }
}
