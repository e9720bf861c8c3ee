/// What an operator sees of a `vmm-blk run`, and can change: the same verbs as for a server with many disks, if they apply.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct OperatorTests {
  private let rig: TakeoverRig

  init() throws { rig = try TakeoverRig() }

  private func ask(_ control: Taker, _ request: String, _ members: String = "") throws -> [String: Any] {
    let line = try #require(try control.send(#"{"request":"\#(request)"\#(members)}"#), "the connection ended at \(request)")
    return try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(line)")
  }

  private func counters(_ control: Taker) throws -> [String: Int] {
    let disks = try #require(try ask(control, "metrics")["disks"] as? [[String: Any]])
    return try #require(disks.first?["counters"] as? [String: Int])
  }

  @Test("a memory file's disk is shown, paused, resumed and ended", arguments: ["uring", "mapped"])
  func seenAndChanged(engine: String) throws {
    let server = try rig.serve(engine: engine)
    let control = try Taker(rig.control)
    #expect(try ask(control, "status")["transport"] as? String == "memory-file")
    try rig.underLoad { guestWorks in
      try guestWorks()
      let status = try ask(control, "status", #","disk":"guest.mem""#)
      #expect(status["state"] as? String == "driven")
      let driver = try #require(status["driver"] as? [String: Any])
      #expect((driver["rings"] as? [[String: Any]])?.map { $0["state"] as? String } == ["running", "running"])
      #expect((driver["features"] as? [String])?.contains("VERSION_1") == true)
      for _ in 1...5 {
        #expect(try ask(control, "pause").isEmpty)
        let before = try counters(control)
        #expect(try ask(control, "flush").isEmpty)
        #expect(try ask(control, "status", #","disk":"guest.mem""#)["state"] as? String == "paused")
        #expect(try counters(control)["writes"] == before["writes"])
        #expect(try ask(control, "resume").isEmpty)
        try guestWorks()
      }
      for (verb, members) in [("add", #","entry":{}"#), ("remove", ""), ("reload", "")] {
        #expect((try ask(control, verb, members)["error"] as? String)?.contains("a memory file is one disk") == true)
      }
      #expect(try ask(control, "log-level", #","level":"error""#)["level"] as? String == "error")
    }
    #expect(try ask(control, "drain").isEmpty)
    let end = server.finish()
    #expect(end.status == 0, "\(end.errors)")
    #expect(!FileManager.default.fileExists(atPath: rig.control))
  }
}
