/// What an operator sees and changes while a server runs: guests of other disks are never affected.
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

/// A server with disks in its own folder, and a control connection to it.
final class Operated {
  let directory: String
  let server: Program
  let control: Taker

  /// - Parameters:
  ///   - disks: names; each is an image of 4 MiB of zeroes, listed in `list`.
  ///   - more: options of the server.
  init(_ directory: String, _ disks: [String], _ more: [String] = []) throws {
    self.directory = directory
    for name in disks { try Self.image(directory, name) }
    try Self.list(directory, disks)
    server = try Program(["serve", "--disks", directory + "/list", "--control", directory + "/control"] + more)
    try #require(server.firstLine().hasPrefix("Serving \(disks.count) disk"))
    control = try Taker(directory + "/control")
  }

  static func image(_ directory: String, _ name: String) throws {
    try Data(count: 4 << 20).write(to: URL(fileURLWithPath: "\(directory)/\(name).img"))
  }

  static func entry(_ directory: String, _ name: String, _ more: String = "") -> String {
    #"{"blk-file": "\#(directory)/\#(name).img", "socket-path": "\#(directory)/\#(name).sock", "num-queues": 2\#(more)}"#
  }

  static func list(_ directory: String, _ disks: [String]) throws {
    let entries = disks.map { entry(directory, $0) }
    try Data("[\(entries.joined(separator: ",\n"))]".utf8).write(to: URL(fileURLWithPath: directory + "/list"))
  }

  func socket(_ name: String) -> String { "\(directory)/\(name).sock" }

  /// - Returns: the answer's members.
  @discardableResult
  func ask(_ request: String, _ members: String = "") throws -> [String: Any] {
    let line = try #require(try control.send(#"{"request":"\#(request)"\#(members)}"#), "the connection ended at \(request)")
    return try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(line)")
  }

  @discardableResult
  func ask(_ request: String, disk: String) throws -> [String: Any] { try ask(request, #","disk":"\#(disk)""#) }

  /// The states of the disks, by the first letters of their sockets' names.
  func states() throws -> [String: String] {
    let disks = try #require(try ask("list")["disks"] as? [[String: Any]])
    return Dictionary(
      uniqueKeysWithValues: disks.map { disk in
        let name = URL(fileURLWithPath: disk["disk"] as? String ?? "").deletingPathExtension().lastPathComponent
        return (name, disk["state"] as? String ?? "")
      })
  }

  func number(_ key: String, _ disk: String) throws -> Int {
    let counters = try #require(try ask("status", disk: socket(disk))["counters"] as? [String: Any])
    return try #require(counters[key] as? Int)
  }

  func guest(_ name: String, _ features: FeatureSet = BlockFeature.understood, queues: Int = 2) throws -> BlockClient {
    let transport = try VhostUserTransport(path: socket(name), memory: DriverMemory(size: 8 << 20))
    return try BlockClient(transport, options: DriverOptions(features: features, queues: queues, queueSize: 64))
  }

  /// Runs a verified load while the body runs.
  func whileBusy(_ name: String, _ body: (Load) throws -> Void) throws {
    let socket = socket(name)
    let connect: @Sendable () throws -> BlockClient = {
      try BlockClient(
        VhostUserTransport(path: socket, memory: DriverMemory(size: 16 << 20)),
        options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
    }
    let report = try Load.run(connect, during: body)
    #expect(report.progress.answered > 0)
  }

  func end() throws {
    server.process.terminate()
    let end = server.finish()
    #expect(end.status == 0, "\(end.errors)")
  }
}

/// A guest that another thread uses, while its owner does not.
private struct Lent: @unchecked Sendable {
  let guest: BlockClient
  init(_ guest: BlockClient) { self.guest = guest }
}

@Suite(.serialized) struct OperatorTests {
  @Test func disksComeAndGoBesideABusyOne() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      try server.whileBusy("a") { load in
        try load.wait()
        try Operated.image(directory, "b")
        for _ in 1...20 {
          let added = try server.ask("add", #","entry":\#(Operated.entry(directory, "b"))"#)
          #expect(added["disk"] as? String == server.socket("b"))
          #expect(try server.states().keys.sorted() == ["a", "b"])
          let guest = try server.guest("b")
          #expect(try guest.perform(.flush).status == .ok)
          #expect(try server.states() == ["a": "driven", "b": "driven"])
          // The guest is still there, and is disconnected.
          #expect(try server.ask("remove", disk: "b.sock").isEmpty)
          #expect(try server.states() == ["a": "driven"])
          #expect(!FileManager.default.fileExists(atPath: server.socket("b")))
        }
        try load.wait()
      }
      try server.end()
    }
  }

  @Test func whatWasRemovedIsLetGoOf() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      try Operated.image(directory, "b")
      let process = "/proc/\(server.server.process.processIdentifier)"
      func open() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: process + "/fd").compactMap { number in
          try? FileManager.default.destinationOfSymbolicLink(atPath: "\(process)/fd/\(number)")
        }
      }
      let before = try open().count
      for _ in 1...30 {
        try server.ask("add", #","entry":\#(Operated.entry(directory, "b"))"#)
        try server.ask("remove", disk: server.socket("b"))
      }
      // Helpers close them, so some time later.
      try wait(until: "nothing of the disk is open") { (try? open().count) == before }
      #expect(try !open().contains { $0.hasSuffix("/b.img") })
      try server.end()
    }
  }

  // MARK: The list of disks

  @Test(arguments: ["reload", "SIGHUP"]) func aListThatIsReadAgainChangesWhatDiffersAndNothingElse(by way: String) throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"])
      try server.whileBusy("a") { load in
        try load.wait()
        try Operated.image(directory, "c")
        for disks in [["a", "c"], ["c", "a", "b"], ["a"]] {
          try Operated.list(directory, disks)
          let before = Set(try server.states().keys)
          if way == "reload" {
            let change = try server.ask("reload")
            func names(_ key: String) -> Set<String> { Set(change[key] as? [String] ?? []) }
            #expect(names("added") == Set(Set(disks).subtracting(before).map(server.socket)))
            #expect(names("removed") == Set(before.subtracting(disks).map(server.socket)))
            #expect(change["untouched"] as? Int == before.intersection(disks).count)
          } else {
            kill(server.server.process.processIdentifier, SIGHUP)
            try wait(until: "the list was read") { (try? Set(server.states().keys)) == Set(disks) }
          }
          #expect(try server.states().keys.sorted() == disks.sorted())
        }
        try load.wait()
      }
      try server.end()
    }
  }

  @Test(arguments: [
    ("[", "is not a JSON array"),
    ("[ENTRY-A, 7]", "entry 2: it has to be an object"),
    ("[ENTRY-A, ENTRY-A]", "it has the socket of entry 1"),
    (#"[ENTRY-A, {"blk-file": "DIR/none", "socket-path": "DIR/n.sock"}, ENTRY-C]"#, "there is no image"),
    (#"[ENTRY-C, {"blk-file": "DIR/c.img", "socket-path": "DIR/n.sock"}]"#, "it has the image of entry 1"),
    (#"[ENTRY-C, {"blk-file": "DIR/b.img", "socket-path": "DIR/n.sock"}]"#, "is in use"),
    (
      #"[{"blk-file": "DIR/a.img", "socket-path": "DIR/a.sock", "num-queues": 2, "read-only": true}]"#,
      "other values of read-only"
    ),
    (#"[{"blk-file": "DIR/c.img", "socket-path": "DIR/a.sock", "num-queues": 1}]"#, "other values of blk-file, num-queues"),
    (#"[ENTRY-A, {"blk-file": "DIR/c.img", "socket-path": "DIR/list"}]"#, "exists and is not a socket"),
  ])
  func aMistakeInTheListChangesNothing(_ text: String, _ sentence: String) throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"])
      try Operated.image(directory, "c")
      let guest = try server.guest("a")
      let list = text.replacingOccurrences(of: "ENTRY-A", with: Operated.entry(directory, "a"))
        .replacingOccurrences(of: "ENTRY-C", with: Operated.entry(directory, "c")).replacingOccurrences(
          of: "DIR", with: directory)
      try Data(list.utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let answer = try server.ask("reload")
      #expect((answer["error"] as? String)?.contains(sentence) == true, "\(answer)")
      #expect(try server.states() == ["a": "driven", "b": "idle"])
      #expect(try guest.perform(.flush).status == .ok)
      #expect(
        try FileManager.default.contentsOfDirectory(atPath: directory).filter { $0.hasSuffix(".sock") }.sorted() == [
          "a.sock", "b.sock",
        ])
      try guest.shutDown()
      try server.end()
    }
  }

  // MARK: Pausing

  /// With every engine that completes in place, and one that does not.
  @Test(arguments: ["sync", "uring", "mapped", "threads"], [BlockFeature.understood, Succession.plain])
  func aDiskThatIsPausedTakesNothingAndLosesNothing(engine: String, features: FeatureSet) throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"], ["--engine", engine])
      try server.whileBusy("a") { a in
        try server.whileBusy("b") { b in
          for _ in 1...5 {
            #expect(try server.ask("pause", disk: "a.sock").isEmpty)
            #expect(try server.states() == ["a": "paused", "b": "driven"])
            let (writes, reads) = (try server.number("writes", "a"), try server.number("reads", "a"))
            try b.wait()
            #expect(try server.number("writes", "a") == writes)
            #expect(try server.number("reads", "a") == reads)
            #expect(try server.ask("resume", disk: "a.sock").isEmpty)
            try a.wait()
          }
        }
      }
      try server.end()
    }
  }

  @Test func aQueueThatStartsOnAPausedDiskWaitsToo() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      try server.ask("pause", disk: "a.sock")
      let guest = try server.guest("a")
      let answered = Mutex<Result<BlockStatusCode, any Error>?>(nil)
      let lent = Lent(guest)
      Thread.detachNewThread {
        let result = Result { try lent.guest.perform(.flush).status }
        answered.withLock { $0 = result }
      }
      // Its first kick has been seen, and nothing was taken.
      for _ in 1...20 {
        _ = try server.ask("status", disk: "a.sock")
        usleep(5_000)
      }
      #expect(answered.withLock { $0 == nil })
      #expect(try server.number("flushes", "a") == 0)
      try server.ask("resume")
      try wait(until: "the request is answered") { answered.withLock { $0 != nil } }
      #expect(try answered.withLock { $0 }?.get() == .ok)
      try guest.shutDown()
      try server.end()
    }
  }

  /// The front-end of a paused disk can disconnect, and the next one can connect.
  @Test func aPausedDiskCanBeStoppedAndDrained() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      do {
        let guest = try server.guest("a")
        #expect(try guest.perform(.flush).status == .ok)
        try server.ask("pause")
        try guest.shutDown()
      }
      let next = try server.guest("a")
      #expect(try server.ask("status", disk: "a.sock")["state"] as? String == "paused")
      withExtendedLifetime(next) {}
      #expect(try server.ask("drain").isEmpty)
      let end = server.server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  @Test func aPauseIsAnsweredWhenNothingIsInFlight() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"], ["--inject", "write:delay=300ms"])
      try server.whileBusy("a") { load in
        try load.wait()
        try wait(until: "something is in flight") { (try? server.number("writes", "a")).map { $0 > 4 } == true }
        #expect(try server.ask("pause").isEmpty)
        let image = try Data(contentsOf: URL(fileURLWithPath: directory + "/a.img"))
        usleep(700_000)
        #expect(try Data(contentsOf: URL(fileURLWithPath: directory + "/a.img")) == image)
        try server.ask("resume")
        try load.wait()
      }
      try server.end()
    }
  }

  @Test func aPausedDiskIsNotTakenOver() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      try server.ask("pause")
      let taker = try Program(["serve", "--disks", directory + "/list", "--take-over", directory + "/control"])
      let end = taker.finish()
      #expect(end.status == 69)
      #expect(end.errors.contains("is paused: resume it with 'vmm-blk ctl resume' first"), "\(end.errors)")
      try server.ask("resume")
      try server.end()
    }
  }

  @Test func nothingChangesDuringATakeover() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      try Operated.image(directory, "b")
      let taker = try Taker(directory + "/control")
      #expect(try taker.ask("take-over", disk: "").contains("error") == false)
      for (verb, members) in [
        ("add", #","entry":\#(Operated.entry(directory, "b"))"#), ("remove", #","disk":"a.sock""#), ("reload", ""),
        ("pause", ""),
        ("drain", ""),
      ] {
        let answer = try server.ask(verb, members)
        #expect((answer["error"] as? String)?.contains("taking over") == true, "\(verb): \(answer)")
      }
      taker.close()
      try wait(until: "the taker is forgotten") { (try? server.ask("pause").isEmpty) == true }
      try server.end()
    }
  }

  // MARK: Hung media

  /// A disk that is closed at once is not the last one: requests in flight on the others are finished.
  @Test func aSignalWaitsForEveryDisk() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"], ["--inject", "read:delay=1s"])
      let disk = try HandDisk(server.socket("b"))
      disk.prepareRead(sector: 0)
      disk.offer([0])
      try wait(until: "the request is taken") { try server.number("reads", "b") == 1 }
      try server.end()
      try disk.waitUntilAnswered()
    }
  }

  /// Whatever is asked of a disk whose medium hangs is answered in time, and the other disk continues.
  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs)) func aSilentMediumKeepsNobodyElse() throws {
    try withDirectory { directory in
      let silent = try SilentFile(size: 1 << 20)
      // The silent file is reached through another process's folder, which a sandbox does not allow.
      let server = try Operated(directory, ["a"], ["--drain-timeout", "1", "--sandbox", "off"])
      try server.whileBusy("a") { load in
        try load.wait()
        let entry =
          #"{"blk-file": "\#(silent.path)", "socket-path": "\#(directory)/s.sock", "engine": "threads", "num-queues": 1}"#
        try server.ask("add", #","entry":\#(entry)"#)
        let guest = try server.guest("s", queues: 1)
        try silent.hold("read write fsync open")
        let other = try Taker(directory + "/control")
        Thread.detachNewThread { _ = try? other.send(#"{"request":"flush","disk":"s.sock"}"#) }
        try silent.waitUntilHeld("fsync")
        let lent = Lent(guest)
        Thread.detachNewThread { _ = try? lent.guest.perform(.read(sector: 0, bytes: 4096)) }
        try silent.waitUntilHeld("read")
        let removed = try server.ask("remove", disk: "s.sock")
        #expect((removed["error"] as? String)?.contains("its medium does not answer") == true, "\(removed)")
        #expect(try server.states() == ["a": "driven", "s": "draining"])
        // In its place another disk can be added.
        try Operated.image(directory, "s")
        #expect(try server.ask("add", #","entry":\#(Operated.entry(directory, "s"))"#)["disk"] != nil)
        let added = try server.ask(
          "add", #","entry":{"blk-file":"\#(silent.path)","socket-path":"\#(directory)/t.sock","no-lock":true}"#)
        #expect((added["error"] as? String)?.contains("has not answered") == true, "\(added)")
        try load.wait()
      }
      server.server.process.terminate()
      try wait(until: "the server has ended or left") { !server.server.process.isRunning || Self.isLeaving(server) }
      silent.end()
      #expect(server.server.finish().status == 75)
    }
  }

  /// A process whose medium has not answered cannot exit. The last thing it does is to remove its files.
  private static func isLeaving(_ server: Operated) -> Bool {
    !FileManager.default.fileExists(atPath: server.directory + "/control")
  }

  // MARK: Requests and log lines

  @Test(arguments: [
    ("{}", "\"request\" is missing"),
    (#"{"request":7}"#, "\"request\" has an invalid value"),
    (#"{"request":"lst"}"#, "did you mean \"list\"?"),
    (#"{"request":"fly"}"#, "use one of list, status"),
    (#"{"request":"commit"}"#, "first"),
    (#"{"request":"status","disk":7}"#, "\"disk\" has an invalid value"),
    (#"{"request":"status","disk":"x\u001b[2J"}"#, "there is no disk"),
    (#"{"request":"flush"}"#, "2 disks are served here"),
    (#"{"request":"remove"}"#, "2 disks are served here"),
    (#"{"request":"add"}"#, "\"entry\" is missing"),
    (#"{"request":"add","entry":7}"#, "has to be an object"),
    (#"{"request":"add","entry":{"blk-fil":"x"}}"#, "did you mean"),
    (#"{"request":"add","entry":{"blk-file":"/none","socket-path":"/none/x"}}"#, "there is no image"),
    (#"{"request":"log-level","level":"loud"}"#, "use one of trace, debug"),
  ])
  func aRequestThatCannotBeIsAnsweredWithASentence(_ line: String, _ sentence: String) throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"])
      let answer = Data(try #require(try server.control.send(line)).utf8)
      let error = try #require(try JSONDecoder().decode([String: String].self, from: answer)["error"])
      #expect(error.contains(sentence))
      #expect(!error.contains("\u{1b}"))
      #expect(try server.states().count == 2)
      try server.end()
    }
  }

  @Test(arguments: ["7", "{", "[]", #"{"request":"list","descriptors":1}"#, "\u{0}"])
  func aLineThatIsNoRequestCostsItsConnectionOnly(_ line: String) throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      let stranger = try Taker(directory + "/control")
      #expect(try stranger.send(line) == nil)
      #expect(try server.states() == ["a": "idle"])
      try server.end()
    }
  }

  @Test func theLogIsJSONWhenAskedForAndItsLevelChanges() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"], ["--log-format", "json", "--log-level", "warning"])
      #expect(try server.ask("log-level")["level"] as? String == "warning")
      do {
        let guest = try server.guest("a")
        #expect(try server.ask("log-level", #","level":"debug""#)["level"] as? String == "debug")
        try guest.shutDown()
      }
      try wait(until: "the guest has gone") { (try? server.states()) == ["a": "idle"] }
      server.server.process.terminate()
      let end = server.server.finish()
      var messages: [String] = []
      for line in end.errors.split(separator: "\n") {
        let object = try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: String], "\(line)")
        #expect(Set(object.keys).isSubset(of: ["time", "level", "disk", "message"]))
        messages.append("\(object["level"] ?? "") \(object["disk"].map { _ in "disk " } ?? "")\(object["message"] ?? "")")
      }
      #expect(!messages.contains { $0.contains("connected") && !$0.contains("disconnected") })
      #expect(messages.contains("info disk the front-end disconnected"), "\(messages)")
      #expect(messages.contains("debug disk queue 0 stopped"), "\(messages)")
    }
  }

  @Test func theJournalsLinesBeginWithTheirLevel() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"], ["--log-format", "journal", "--log-level", "debug"])
      try server.guest("a").shutDown()
      try wait(until: "the guest has gone") { (try? server.states()) == ["a": "idle"] }
      // An invalid request causes a warning.
      #expect(try Taker(directory + "/control").send("7") == nil)
      server.server.process.terminate()
      let lines = server.server.finish().errors.split(separator: "\n").map(String.init)
      for line in lines { #expect(line.wholeMatch(of: /<[2-7]>[^<].*/) != nil, "\(line)") }
      #expect(lines.contains { $0.hasPrefix("<6>") && $0.hasSuffix("a.sock: the front-end disconnected") }, "\(lines)")
      #expect(lines.contains { $0.hasPrefix("<7>") && $0.hasSuffix("queue 0 stopped") }, "\(lines)")
      #expect(lines.contains { $0.hasPrefix("<4>") }, "\(lines)")
    }
  }

  // MARK: The command line

  @Test func whatPeopleSee() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"])
      try Operated.image(directory, "c")
      let guest = try server.guest("a")
      func ctl(_ words: String...) throws -> (status: Int32, output: String, errors: String) {
        try Program(["ctl", "--control", directory + "/control"] + words).finish()
      }
      let list = try ctl("list")
      #expect(list.status == 0)
      #expect(list.output.contains("\(directory)/a.sock \(directory)/a.img 4 MiB driven"), "\(list.output)")
      let status = try ctl("status", directory + "/a.sock").output
      for words in [
        "driver      process \(getpid()) of user \(geteuid())", "ring 1      64 entries, running", "RING_EVENT_IDX",
      ] {
        #expect(status.contains(words), "\(status)")
      }
      #expect(try ctl("status").output.contains("on vhost-user, up "))
      #expect(try ctl("add", "blk-file=\(directory)/c.img", "socket-path=\(directory)/c.sock", "read-only=true").status == 0)
      #expect(try ctl("status", "c.sock").output.contains("c.img, read-only"))
      #expect(try ctl("pause", "--all").output.split(separator: "\n").count == 3)
      #expect(try ctl("resume", "--all").status == 0)
      #expect(try ctl("flush", "a.sock").output == "flushed a.sock\n")
      #expect(try ctl("remove", "c.sock").status == 0)
      let refused = try ctl("remove", "c.sock")
      #expect(refused.status == 1)
      #expect(
        refused.errors == "Error: the server refuses: there is no disk c.sock here; did you mean \(directory)/a.sock?\n"
          || refused.errors == "Error: the server refuses: there is no disk c.sock here\n", "\(refused.errors)")
      #expect(try ctl("add", "blk-file=x").status == 64)
      #expect(try ctl("add", "blk-file=x", "socket-path=y", "threads=many").errors.contains("use a whole number"))
      #expect(try Program(["ctl", "list"]).finish().errors.contains("name its control socket with --control"))
      #expect(try Program(["ctl", "list", "--control", directory + "/none"]).finish().status == 69)
      let raw = try ctl("--json", "list").output
      #expect((try JSONSerialization.jsonObject(with: Data(raw.utf8)) as? [String: Any])?["disks"] != nil)
      try guest.shutDown()
      #expect(try ctl("drain").status == 0)
      #expect(server.server.finish().status == 0)
    }
  }
}
