/// Servers that take over from each other with the same guest: whatever goes wrong on the way, the guest sees
/// neither an error nor a lost connection, and every byte is right.
import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import Sockets
@testable import VhostUser

/// One way of serving.
struct Succession: Sendable, CustomTestStringConvertible {
  var engine: String
  var queues = 1
  var features = BlockFeature.understood
  var keepsRecords = true
  var options: [String] = []
  /// The engine of every second server.
  var other: String?

  var testDescription: String {
    "\(engine)\(other.map { " and \($0)" } ?? ""), \(queues) queue\(queues == 1 ? "" : "s"), \(keepsRecords ? "records" : "in order")"
  }

  static let plain = BlockFeature.understood.subtracting([.indirectDescriptors, .eventIndex])

  static let all: [Succession] = [
    Succession(engine: "uring", queues: 4),
    Succession(engine: "uring", keepsRecords: false),
    Succession(engine: "sync", features: plain, keepsRecords: false, other: "mapped"),
    Succession(engine: "threads", queues: 2, features: plain),
    Succession(engine: "mapped", queues: 4, keepsRecords: false, other: "uring"),
    Succession(engine: "aio", queues: 2, features: BlockFeature.understood.subtracting(.eventIndex)),
    Succession(engine: "cached", queues: 2, keepsRecords: false, other: "threads"),
    Succession(engine: "uring", queues: 2, keepsRecords: false, options: ["--publish-in-order", "off"]),
  ]
}

@Suite(.serialized) struct TakeoverTests {
  @Test(arguments: Succession.all) func oneAfterTheOther(_ succession: Succession) throws {
    try withDirectory { directory in
      let first = try Self.serve(directory, succession)
      var before = first
      let progress = try Self.underLoad(directory, succession) {
        for number in 1...6 {
          let engine = number % 2 == 1 ? succession.other ?? succession.engine : succession.engine
          let after = try Self.start(directory, succession, engine: engine, more: ["--take-over", directory + "/control"])
          try #require(after.firstLine().hasPrefix("Serving "))
          let end = before.finish()
          #expect(end.status == 0, "\(end.errors)")
          #expect(end.errors.contains("everything is served by another process"))
          before = after
        }
      }
      #expect(progress.answered > 0)
      before.process.terminate()
      #expect(before.finish().status == 0)
      for file in ["disk.sock", "control"] { #expect(!FileManager.default.fileExists(atPath: directory + "/" + file)) }
    }
  }

  // MARK: what goes wrong

  /// A taker whose configuration does not match is refused before anything is stopped.
  @Test(arguments: [
    (["--blk-file", "DIR/other"], "is not the image that the running server has open"),
    (["--num-queues", "2"], "number of queues"),
    (["--queue-size-max", "64"], "largest ring size"),
    (["--read-only"], "features"),
    (["--serial", "another"], "serial"),
    (["--logical-block-size", "4096"], "configuration space"),
    (["--memory-budget", "1M"], "raise --memory-budget"),
    (["--socket-path", "DIR/elsewhere"], "not on DIR/elsewhere"),
    (["--record", "DIR/record"], "cannot be combined with --take-over"),
    (["--engine", "warp"], "warp"),
  ])
  func whatDoesNotFitIsRefused(_ options: [String], _ sentence: String) throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, Succession(engine: "sync"))
      try Data(count: 8 << 20).write(to: URL(fileURLWithPath: directory + "/other"))
      let words = options.map { $0.replacingOccurrences(of: "DIR", with: directory) }
      let answered = try Self.underLoad(directory, Succession(engine: "sync")) {
        let taker = try Self.start(
          directory, Succession(engine: "sync"), engine: "sync", more: ["--take-over", directory + "/control"] + words)
        let end = taker.finish()
        #expect(end.status != 0)
        #expect(end.output.isEmpty)
        #expect(end.errors.contains(sentence.replacingOccurrences(of: "DIR", with: directory)), "\(end.errors)")
      }
      #expect(answered.answered > 0)
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// Without free descriptors, the taker cannot even receive the state.
  @Test func aTakerWithoutRoomIsNone() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, Succession(engine: "sync"))
      _ = try Self.underLoad(directory, Succession(engine: "sync", queues: 4)) {
        let words = Self.words(directory, Succession(engine: "sync"), engine: "sync")
        let end = try Program(words + ["--take-over", directory + "/control"], limit: "-Hn 14").finish()
        #expect(end.status != 0)
        #expect(end.output.isEmpty)
      }
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// The steps at which a taker can stop, or die, named after the last line it has sent.
  enum Step: String, CaseIterable {
    case greeted = "take-over"
    case described = "describe"
    case paused = "pause"
    case committed = "commit"
  }

  /// The guest notices nothing, with records or in order; after `commit` the taker may have begun, and what it did is read
  /// from guest memory.
  @Test(arguments: Step.allCases, [true, false]) func aTakerThatDies(at step: Step, keepsRecords: Bool) throws {
    try withDirectory { directory in
      let succession = Succession(engine: "uring", queues: 2, keepsRecords: keepsRecords)
      let server = try Self.serve(directory, succession)
      _ = try Self.underLoad(directory, succession) {
        for _ in 1...3 {
          let taker = try Taker(directory + "/control")
          for next in Step.allCases {
            #expect(try taker.ask(next.rawValue, disk: directory + "/disk.sock").contains("error") == false)
            if next == step { break }
          }
          taker.close()
          // The same guest continues, and the next taker is accepted.
          try wait(until: "the disk goes on") {
            guard let next = try? Taker(directory + "/control") else { return false }
            defer { next.close() }
            return (try? next.ask("take-over", disk: "").contains("\"disks\"")) ?? false
          }
        }
      }
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  @Test func aTakerThatRefuses() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, Succession(engine: "mapped", queues: 2))
      _ = try Self.underLoad(directory, Succession(engine: "mapped", queues: 2)) {
        let taker = try Taker(directory + "/control")
        _ = try taker.ask("take-over", disk: "")
        for _ in 1...5 {
          #expect(try taker.ask("pause", disk: directory + "/disk.sock").contains("stillSince"))
          #expect(try taker.ask("resume", disk: directory + "/disk.sock").contains("error") == false)
        }
        taker.close()
      }
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// A taker that receives the state and then says nothing delays the disk for a while, not forever.
  @Test func aTakerThatIsSilent() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, Succession(engine: "uring"))
      let progress = try Self.underLoad(directory, Succession(engine: "uring")) {
        let taker = try Taker(directory + "/control")
        _ = try taker.ask("take-over", disk: "")
        #expect(try taker.ask("pause", disk: directory + "/disk.sock").contains("stillSince"))
        // Its connection is closed when the disk continues.
        #expect(try taker.read() == nil)
        taker.close()
      }
      #expect(progress.answered > 0)
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// Messages that no taker sends are answered, and change nothing.
  @Test func messagesThatCannotBe() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, Succession(engine: "sync"))
      _ = try Self.underLoad(directory, Succession(engine: "sync")) {
        let taker = try Taker(directory + "/control")
        for (line, sentence) in [
          (#"{"request":"take-over","version":99}"#, "version 99 of the takeover protocol is not supported here"),
          (#"{"request":"take-over"}"#, "version none"),
          // The operator's verb: nothing was taken over.
          (#"{"request":"pause","disk":"x"}"#, "there is no disk x here"),
          (#"{"request":"frobnicate"}"#, #"there is no \"frobnicate\" here"#),
          ("{}", "is missing"),
        ] {
          let answer = try #require(try taker.send(line), "\(line): the connection ended")
          #expect(answer.contains(sentence) && answer.contains(#""error""#), "\(line): \(answer)")
        }
        #expect(try taker.send("[]") == nil, "what is no object ends the connection")
        taker.close()
        let second = try Taker(directory + "/control")
        _ = try second.ask("take-over", disk: "")
        for (verb, disk) in [("pause", "/nowhere"), ("commit", directory + "/disk.sock"), ("served", directory + "/disk.sock")]
        {
          #expect(try second.ask(verb, disk: disk).contains("error"))
        }
        let third = try Taker(directory + "/control")
        #expect(try third.ask("take-over", disk: "").contains("another process is taking over already"))
        third.close()
        second.close()
      }
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// A taker that has gone before it is told that a disk is its own does not affect the other disks.
  @Test func aTakerThatDoesNotHear() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a", "b"])
      let taker = try Taker(directory + "/control")
      for step in Step.allCases {
        #expect(try taker.ask(step.rawValue, disk: server.socket("a")).contains("error") == false)
      }
      // The server is stopped meanwhile, so that it finds the message and the end of the connection at the same time.
      kill(server.server.process.processIdentifier, SIGSTOP)
      try taker.say(#"{"request":"served","version":1,"disk":"\#(server.socket("a"))"}"#)
      taker.close()
      kill(server.server.process.processIdentifier, SIGCONT)
      let client = try server.guest("b")
      #expect(try client.perform(.read(sector: 0, bytes: 512)).status == .ok)
      try client.shutDown()
      try server.end()
    }
  }

  /// Only the server's own user and root are accepted.
  @Test(.enabled(if: geteuid() == 0)) func strangersAreRefused() throws {
    try withDirectory { directory in
      _ = unsafe chmod(directory, 0o755)
      let server = try Self.serve(directory, Succession(engine: "sync"))
      _ = unsafe chmod(directory + "/control", 0o777)
      let stranger = Process()
      stranger.executableURL = URL(fileURLWithPath: "/usr/bin/setpriv")
      stranger.arguments = ["--reuid", "65534", "--clear-groups", "--", Program.path.path, "serve", "--take-over"]
      stranger.arguments! += [directory + "/control", "--blk-file", directory + "/disk"]
      stranger.standardError = FileHandle.nullDevice
      try stranger.run()
      stranger.waitUntilExit()
      #expect(stranger.terminationStatus != 0)
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0)
      // If other users cannot run the program at all, there is nothing to refuse.
      if stranger.terminationStatus == 69 { #expect(end.errors.contains("of user 65534 was refused at the control socket")) }
    }
  }

  // MARK: many, and none

  @Test func allDisksOfAProcess() throws {
    try withDirectory { directory in
      let names = ["a", "b", "c"]
      for name in names { try Data(count: 8 << 20).write(to: URL(fileURLWithPath: directory + "/\(name).img")) }
      func list(_ names: [String], in file: String) throws {
        let entries = names.map { #"{"blk-file": "\#(directory)/\#($0).img", "socket-path": "\#(directory)/\#($0).sock"}"# }
        try Data("[\(entries.joined(separator: ","))]".utf8).write(to: URL(fileURLWithPath: directory + "/" + file))
      }
      try list(names, in: "all")
      try list(["a", "b"], in: "two")
      let control = directory + "/control"
      func start(_ file: String, _ more: [String]) throws -> Program {
        try Program(["serve", "--disks", directory + "/" + file, "--control", control, "--engine", "uring"] + more)
      }
      var server = try start("all", [])
      try #require(server.firstLine().hasPrefix("Serving 3 disks"))
      let guests = try names.dropLast().map { name in
        let transport = try VhostUserTransport(path: "\(directory)/\(name).sock", memory: DriverMemory(size: 8 << 20))
        return try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
      }
      var options = VerifyOptions(seed: 3, range: 0..<2 << 20, limit: .bytes(4 << 20), largest: 16 << 10)
      let refused = try start("two", ["--take-over", control]).finish()
      #expect(refused.status == 64)
      #expect(refused.errors.contains("c.sock, which \(directory)/two does not list"), "\(refused.errors)")
      for _ in 1...3 {
        let next = try start("all", ["--take-over", control])
        try #require(next.firstLine().hasPrefix("Serving 3 disks"))
        #expect(server.finish().status == 0)
        server = next
        for guest in guests {
          options.seed += 1
          var verifier = try Verifier(guest, options)
          _ = try verifier.run()
        }
      }
      // No front-end had connected to the third disk yet.
      let late = try BlockClient(
        VhostUserTransport(path: directory + "/c.sock", memory: DriverMemory(size: 8 << 20)),
        options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
      var verifier = try Verifier(late, options)
      _ = try verifier.run()
      for guest in guests + [late] { try guest.shutDown() }
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// The image stays locked, by either server.
  @Test func theLockStays() throws {
    try withDirectory { directory in
      var server = try Self.serve(directory, Succession(engine: "sync"))
      func another() throws -> Int32 {
        try Program(["serve", "--blk-file", directory + "/disk", "--socket-path", directory + "/another"]).finish().status
      }
      for _ in 1...2 {
        #expect(try another() == 66)
        let next = try Self.start(
          directory, Succession(engine: "sync"), engine: "sync", more: ["--take-over", directory + "/control"])
        try #require(next.firstLine().hasPrefix("Serving "))
        #expect(server.finish().status == 0)
        server = next
      }
      #expect(try another() == 66)
      server.process.terminate()
      #expect(server.finish().status == 0)
      let free = try Program(["serve", "--blk-file", directory + "/disk", "--socket-path", directory + "/another"])
      #expect(free.firstLine().hasPrefix("Serving "))
      free.process.terminate()
      #expect(free.finish().status == 0)
    }
  }

  // MARK: the rig

  static func words(_ directory: String, _ succession: Succession, engine: String) -> [String] {
    ["serve", "--blk-file", directory + "/disk", "--control", directory + "/control", "--engine", engine, "--num-queues", "4"]
      + succession.options
  }

  static func start(
    _ directory: String, _ succession: Succession, engine: String, more: [String]
  ) throws -> Program {
    try Program(Program.words(words(directory, succession, engine: engine), overriddenBy: more))
  }

  static func serve(_ directory: String, _ succession: Succession) throws -> Program {
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
    let server = try start(
      directory, succession, engine: succession.engine, more: ["--socket-path", directory + "/disk.sock"])
    try #require(server.firstLine().hasPrefix("Serving "))
    return server
  }

  /// Runs a guest's workload while something is done to its server.
  static func underLoad(_ directory: String, _ succession: Succession, _ act: () throws -> Void) throws -> VerifyProgress {
    let report = try Load.run {
      let transport = try VhostUserTransport(
        path: directory + "/disk.sock", memory: DriverMemory(size: 16 << 20),
        reconnection: succession.keepsRecords ? Reconnection(base: .used, keepsRecords: true) : nil)
      return try BlockClient(
        transport, options: DriverOptions(features: succession.features, queues: succession.queues, queueSize: 64))
    } during: { _ in
      try act()
    }
    #expect(report.reconnections == 0)
    return report.progress
  }
}
