/// `vmm-blk trace` from the view of its user and of guests.
import Foundation
import TestSupport
import Testing
import VirtioBlkDevice
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

@Suite struct TraceCommandTests {
  /// A server with these disks, 4 MiB images of zeroes, and its control socket.
  static func serve(_ directory: String, _ disks: [String], _ more: [String] = []) throws -> Program {
    let entries = disks.map {
      #"{"blk-file": "\#(directory)/\#($0).img", "socket-path": "\#(directory)/\#($0).sock", "num-queues": 2}"#
    }
    for name in disks { try Data(count: 4 << 20).write(to: URL(fileURLWithPath: "\(directory)/\(name).img")) }
    try Data("[\(entries.joined(separator: ","))]".utf8).write(to: URL(fileURLWithPath: directory + "/list"))
    let server = try Program(["serve", "--disks", directory + "/list", "--control", directory + "/control"] + more)
    try #require(server.firstLine().hasPrefix("Serving \(disks.count) disk"))
    return server
  }

  static func guest(_ directory: String, _ name: String) throws -> BlockClient {
    try BlockClient(
      VhostUserTransport(path: "\(directory)/\(name).sock", memory: DriverMemory(size: 8 << 20)),
      options: DriverOptions(features: BlockFeature.understood, queues: 1, queueSize: 64))
  }

  static func ask(_ control: Taker, _ words: String) throws -> [String: Any] {
    let line = try #require(try control.send(#"{"request":"trace"\#(words)}"#), "the connection ended at \(words)")
    return try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(line)")
  }

  static func end(_ server: Program) {
    server.process.terminate()
    let end = server.finish()
    #expect(end.status == 0, "\(end.errors)")
  }

  /// The program records a guest's workload; the other disk is listed, without requests.
  @Test func aTraceOfTwoDisksHasWhatTheGuestDid() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["a", "b"])
      let load = { @Sendable () throws -> BlockClient in
        try BlockClient(
          VhostUserTransport(path: directory + "/a.sock", memory: DriverMemory(size: 16 << 20)),
          options: DriverOptions(features: BlockFeature.understood, queues: 1, queueSize: 64))
      }
      var output = ""
      try Load.run(load) { _ in
        let trace = try Program([
          "trace", "--control", directory + "/control", "--seconds", "0.3", "--records", "2048", "--output",
          directory + "/t.json",
          "--picture", directory + "/t.svg",
        ])
        let end = trace.finish()
        #expect(end.status == 0, "\(end.errors)")
        output = end.output
      }
      #expect(output.contains("a.sock (") && output.contains("b.sock (") && output.contains("thread 0"), "\(output)")
      let text = try Data(contentsOf: URL(fileURLWithPath: directory + "/t.json"))
      let object = try #require(try JSONSerialization.jsonObject(with: text) as? [String: Any])
      let events = try #require(object["traceEvents"] as? [[String: Any]])
      #expect(events.count { $0["name"] as? String == "process_name" } == 2)
      // Each request's begin event comes before its end event.
      var open: [String: Double] = [:]
      var ended = 0
      for event in events where event["cat"] as? String == "requests" {
        let id = try #require(event["id"] as? String) + (event["name"] as? String ?? "")
        let time = try #require(event["ts"] as? Double)
        if event["ph"] as? String == "b" {
          open[id] = time
        } else {
          let begin = try #require(open[id], "\(id) ends without having begun")
          open[id] = nil
          #expect(begin <= time)
          ended += 1
        }
      }
      #expect(ended > 0 && events.allSatisfy { $0["cat"] as? String != "requests" || $0["pid"] as? Int == 1 })
      #expect(try String(contentsOfFile: directory + "/t.svg", encoding: .utf8).hasSuffix("</svg>\n"))
      Self.end(server)
    }
  }

  /// Line by line: what a client sends, and the answers, down to the number of requests.
  @Test func countsAreWhatTheGuestDid() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["a", "b"])
      let control = try Taker(directory + "/control")
      let client = try Self.guest(directory, "a")
      #expect(try client.perform(.read(sector: 0, bytes: 512)).status == .ok)
      let disk = #","disk":"a.sock""#
      #expect(try Self.ask(control, disk + #","action":"start","milliseconds":600000,"records":1000"#)["error"] == nil)
      // A second start is refused while it runs, and delays no answer.
      #expect(try Self.ask(control, disk + #","action":"start","milliseconds":10,"records":1000"#)["error"] != nil)
      // Once a pause is over, the thread has handled the message.
      for verb in ["pause", "resume"] {
        #expect(try control.send(#"{"request":"\#(verb)"\#(disk)}"#)?.contains("error") == false)
      }
      for number in 0..<40 { #expect(try client.perform(.read(sector: UInt64(number), bytes: 512)).status == .ok) }
      for number in 0..<9 {
        #expect(try client.perform(.write(sector: UInt64(number), [UInt8](repeating: 7, count: 512))).status == .ok)
      }
      let end = try Self.ask(control, disk + #","action":"stop""#)
      let threads = try #require(end["threads"] as? [[String: Any]], "\(end)")
      #expect(threads.count == 1)
      let count = try #require(threads.first?["records"] as? Int)
      var records: [TraceRecord] = []
      while records.count < count {
        let answer = try Self.ask(control, disk + #","action":"read","thread":0,"from":\#(records.count)"#)
        let text = try #require(answer["records"] as? String)
        let bytes = Array(try #require(Data(base64Encoded: text)))
        try #require(!bytes.isEmpty)
        records += stride(from: 0, to: bytes.count, by: TraceRecord.size).compactMap { TraceRecord(bytes, at: $0) }
      }
      let requests = records.filter { $0.kind == .request }
      #expect(requests.count { $0.request == .read } == 40 && requests.count { $0.request == .write } == 9)
      #expect(requests.prefix(40).map(\.sector) == Array(0..<40))
      #expect(try Self.ask(control, disk + #","action":"read","thread":9"#)["error"] != nil)
      #expect(try Self.ask(control, disk + #","action":"drop""#)["error"] == nil)
      #expect(try Self.ask(control, disk + #","action":"stop""#)["error"] != nil)
      try client.shutDown()
      Self.end(server)
    }
  }

  /// Requests are limited, and missing members are named.
  @Test(arguments: [
    ("", "action"), (#","action":"start","records":100"#, "milliseconds"),
    (#","action":"start","milliseconds":0,"records":100"#, "milliseconds"),
    (#","action":"start","milliseconds":10"#, "records"),
    (#","action":"start","milliseconds":10,"records":99999999"#, "records"),
    (#","action":"start","milliseconds":10,"records":4194304"#, "together"), (#","action":"read","thread":0"#, "no trace of"),
    (#","action":"stop""#, "no trace of"), (#","action":"begin""#, "action"),
  ]) func whatMakesNoSenseIsRefused(_ words: String, _ reason: String) throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["a"])
      let control = try Taker(directory + "/control")
      let answer = try #require(try Self.ask(control, words)["error"] as? String)
      #expect(answer.contains(reason), "\(answer)")
      Self.end(server)
    }
  }

  /// Without a client to end or fetch it, a trace ends by itself, and a new one can begin.
  @Test func aTraceEndsByItself() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["a"])
      let control = try Taker(directory + "/control")
      let start = #","action":"start","milliseconds":20,"records":64"#
      #expect(try Self.ask(control, start)["error"] == nil)
      try wait(until: "a new one can begin") { try Self.ask(control, start)["error"] == nil }
      let abandoned = try Program(["trace", "--control", directory + "/control", "--abandon"]).finish()
      #expect(abandoned.status == 0, "\(abandoned.errors)")
      #expect(try Self.ask(control, #","action":"stop""#)["error"] != nil)
      Self.end(server)
    }
  }

  /// Signals start and end traces, each of which replaces the file's content. Two signals at once count as one.
  @Test(arguments: ["serve", "run"]) func signalsWriteOneTraceAfterTheOther(_ command: String) throws {
    try withDirectory { directory in
      let trace = directory + "/trace.json"
      try Data(count: 4 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
      let place =
        command == "serve" ? ["--socket-path", directory + "/a.sock"] : ["--memory", directory + "/a.mem", "--create", "8M"]
      let server = try Program([command, "--blk-file", directory + "/a.img", "--trace-file", trace] + place)
      try #require(server.firstLine().hasPrefix("Serving "))
      #expect(try Data(contentsOf: URL(fileURLWithPath: trace)).isEmpty)
      for name in ["an earlier one, which is longer than what comes now", ""] {
        try Data(String(repeating: name, count: 4000).utf8).write(to: URL(fileURLWithPath: trace), options: [])
        try wait(until: "a trace is in the file") {
          kill(server.process.processIdentifier, SIGUSR2)
          usleep(50_000)
          let text = try Data(contentsOf: URL(fileURLWithPath: trace))
          let events =
            (try? JSONSerialization.jsonObject(with: text) as? [String: Any])?["traceEvents"] as? [[String: Any]] ?? []
          return events.contains { $0["name"] as? String == "process_name" }
        }
      }
      Self.end(server)
    }
  }

  @Test func aTraceFileThatCannotBeWrittenEndsTheStart() throws {
    try withDirectory { directory in
      try Data(count: 4 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
      for words in [
        ["serve", "--socket-path", directory + "/a.sock"], ["run", "--memory", directory + "/a.mem", "--create", "8M"],
      ] {
        let end = try Program(words + ["--blk-file", directory + "/a.img", "--trace-file", directory]).finish()
        #expect(end.status != 0 && end.errors.contains("--trace-file \(directory) cannot be written"), "\(end.errors)")
      }
    }
  }

  /// With the kernel's trace points if they are available, and with a sentence if not.
  @Test func theKernelsPartIsThereOrMissedInASentence() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["a"])
      let words = ["--control", directory + "/control", "--seconds", "0.05", "--kernel", "--output", directory + "/t.json"]
      let end = try Program(["trace"] + words).finish()
      if end.status == 0 {
        #expect(end.output.contains("kernel, io_uring:") && end.output.contains("kernel, block devices:"), "\(end.output)")
        #expect(try String(contentsOfFile: directory + "/t.json", encoding: .utf8).contains("kernel: io_uring"))
      } else {
        #expect(end.status == 1 && end.errors.contains("--kernel "), "\(end.errors)")
      }
      Self.end(server)
    }
  }

  @Test(arguments: [
    (["--seconds", "0"], "--seconds"), (["--records", "1"], "--records"), (["--picture-requests", "0"], "--picture-requests"),
    (["--disk", "none.sock"], "no disk"), (["--output", "/nowhere/at/all.json", "--seconds", "0.01"], "/nowhere/at/all.json"),
  ]) func mistakesAreSentences(_ words: [String], _ reason: String) throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["a"])
      let end = try Program(["trace", "--control", directory + "/control"] + words).finish()
      #expect(end.status != 0 && end.errors.contains(reason), "\(end.errors)")
      Self.end(server)
    }
  }
}
