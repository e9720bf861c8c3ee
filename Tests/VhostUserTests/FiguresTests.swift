/// A server's metrics, through every interface that shows them.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import Sockets
@testable import VhostUser

@Suite struct FiguresTests {
  private static func serve(_ directory: String, _ more: [String] = []) throws -> Program {
    try Data(count: 4 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
    let words = ["--blk-file", "a.img", "--socket-path", "a.sock", "--control", "control", "--metrics", "metrics"]
    let server = try Program(["serve"] + words.map { $0.hasPrefix("--") ? $0 : "\(directory)/\($0)" } + more)
    try #require(server.firstLine().hasPrefix("Serving "))
    return server
  }

  /// Performs some requests of each kind, and disconnects.
  private static func drive(_ directory: String) throws {
    let transport = try VhostUserTransport(path: directory + "/a.sock", memory: DriverMemory(size: 8 << 20))
    let client = try BlockClient(
      transport, options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
    for number in 0..<37 { #expect(try client.perform(.read(sector: UInt64(number), bytes: 512)).status == .ok) }
    for number in 0..<11 {
      let bytes = [UInt8](repeating: 1, count: 1024)
      #expect(try client.perform(.write(sector: UInt64(number), bytes)).status == .ok)
    }
    for _ in 0..<3 { #expect(try client.perform(.flush).status == .ok) }
    for _ in 0..<2 { #expect(try client.perform(.read(sector: 1 << 40, bytes: 512)).status == .ioError) }
    try client.shutDown()
  }

  /// The metrics page, over HTTP.
  private static func page(_ directory: String) throws -> String {
    let socket = try UnixSocket.connect(to: directory + "/metrics")
    let request = Array("GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n".utf8)
    try #require(unsafe write(socket.rawValue, request, request.count) == request.count)
    var answer: [UInt8] = []
    var room = [UInt8](repeating: 0, count: 65536)
    while true {
      var entry = pollfd(fd: socket.rawValue, events: Int16(POLLIN), revents: 0)
      try #require(unsafe poll(&entry, 1, Int32(Patience.limit / .milliseconds(1))) == 1, "no answer")
      let count = unsafe read(socket.rawValue, &room, room.count)
      guard count > 0 else { break }
      answer += room[..<count]
    }
    let text = String(decoding: answer, as: UTF8.self)
    try #require(text.hasPrefix("HTTP/1.1 200 OK\r\n"))
    return try #require(text.components(separatedBy: "\r\n\r\n").last)
  }

  @Test func everyWaySaysWhatTheGuestDid() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory)
      try Self.drive(directory)
      let page = try Self.page(directory)
      let printed = try Program(["ctl", "--control", directory + "/control", "metrics"]).finish().output
      for text in [page, printed] {
        let lines = Set(text.split(separator: "\n").map(String.init))
        let labels = #"disk="\#(directory)/a.sock""#
        for line in [
          #"vmm_blk_requests_total{\#(labels),kind="read"} 39"#, #"vmm_blk_requests_total{\#(labels),kind="write"} 11"#,
          #"vmm_blk_requests_total{\#(labels),kind="flush"} 3"#, #"vmm_blk_requests_total{\#(labels),kind="discard"} 0"#,
          #"vmm_blk_bytes_total{\#(labels),kind="read"} 19968"#, #"vmm_blk_bytes_total{\#(labels),kind="write"} 11264"#,
          #"vmm_blk_errors_total{\#(labels),why="refused"} 2"#, #"vmm_blk_errors_total{\#(labels),why="medium"} 0"#,
          #"vmm_blk_request_duration_seconds_count{\#(labels),kind="read"} 39"#,
          #"vmm_blk_request_duration_seconds_bucket{\#(labels),kind="write",le="+Inf"} 11"#,
          #"vmm_blk_in_flight{\#(labels)} 0"#, #"vmm_blk_state{\#(labels),state="idle"} 1"#,
          #"vmm_blk_state{\#(labels),state="driven"} 0"#, #"vmm_blk_size_bytes{\#(labels)} 4194304"#,
        ] {
          #expect(lines.contains(line), "\(line)")
        }
      }
      server.process.terminate()
      #expect(server.finish().status == 0)
      #expect(!FileManager.default.fileExists(atPath: directory + "/metrics"))
    }
  }

  /// As the format's description requires: a family's lines are together under its HELP and TYPE, and histograms only grow.
  @Test func thePageIsOneThatCollectorsRead() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory)
      try Self.drive(directory)
      var family = ""
      var families: Set<String> = []
      var last: (series: String, count: Double) = ("", 0)
      let sample = /([a-z_]+)(\{[^}]*\})? ([0-9.e+-]+)/
      for line in try Self.page(directory).split(separator: "\n") {
        if line.hasPrefix("# HELP ") {
          family = String(line.split(separator: " ")[2])
          #expect(families.insert(family).inserted, "\(family) comes twice")
          continue
        }
        if line.hasPrefix("# TYPE ") {
          #expect(line.split(separator: " ")[2] == family)
          continue
        }
        let parts = try #require(try sample.wholeMatch(in: line), "\(line)")
        let name = String(parts.1)
        #expect(name == family || ["_bucket", "_sum", "_count"].contains { name == family + $0 }, "\(line)")
        guard name.hasSuffix("_bucket") else { continue }
        let (series, count) = (
          String(line.prefix(upTo: try #require(line.range(of: ",le=")).lowerBound)), try #require(Double(parts.3))
        )
        if series == last.series { #expect(count >= last.count, "\(line)") }
        last = (series, count)
      }
      #expect(families.contains("vmm_blk_request_duration_seconds"))
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  @Test func timesAreNotKeptWhenNobodyWantsThem() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["--latencies", "off"])
      try Self.drive(directory)
      let page = try Self.page(directory)
      #expect(page.contains(#"kind="read"} 39"#))
      #expect(!page.contains("vmm_blk_request_duration_seconds_count"))
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// The address belongs to the old server until that has ended.
  @Test func aServerThatTakesOverShowsThemInTheSamePlace() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory)
      try Self.drive(directory)
      let words = ["--blk-file", "a.img", "--take-over", "control", "--control", "control", "--metrics", "metrics"]
      let next = try Program(["serve"] + words.map { $0.hasPrefix("--") ? $0 : "\(directory)/\($0)" })
      #expect(next.firstLine().hasPrefix("Serving "))
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
      try wait(until: "the metrics are there again") { (try? Self.page(directory).contains(#"kind="read"} 0"#)) == true }
      next.process.terminate()
      #expect(next.finish().status == 0)
      #expect(!FileManager.default.fileExists(atPath: directory + "/metrics"))
    }
  }

  @Test(arguments: ["0", "x:y", "300.1.1.1:80", "metrics"]) func anAddressThatCannotBeIsASentence(_ address: String) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
      let end = try Program([
        "serve", "--blk-file", directory + "/a.img", "--socket-path", directory + "/a.sock", "--metrics", address,
      ]).finish()
      #expect(end.status != 0)
      #expect(end.output.isEmpty)
      #expect(end.errors.split(separator: "\n").contains { $0.hasPrefix("Error: ") })
    }
  }

  // MARK: top

  @Test func topPrintsLinesWhereThereIsNoTerminal() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory)
      let end = try Program(["top", "--control", directory + "/control", "--interval", "0.1", "--count", "3"]).finish()
      #expect(end.status == 0, "\(end.errors)")
      #expect(!end.output.contains("\u{1b}"))
      #expect(end.output.components(separatedBy: "p99").count == 4)
      #expect(end.output.components(separatedBy: "\n\(directory)/a.sock idle ").count == 4, "\(end.output)")
      server.process.terminate()
      #expect(server.finish().status == 0)
      let none = try Program(["top", "--control", directory + "/control"]).finish()
      #expect(none.status == 69)
    }
  }

  @Test func topFitsATerminalAndQuitsOnQ() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory)
      var ends: (Int32, Int32) = (-1, -1)
      var size = winsize(ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0)
      try #require(unsafe openpty(&ends.0, &ends.1, nil, nil, &size) == 0)
      for end in [ends.0, ends.1] { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
      let (master, terminal) = (OwnedDescriptor(ends.0), OwnedDescriptor(ends.1))
      let child = try Child(
        [Program.path.path, "top", "--control", directory + "/control", "--interval", "0.1"],
        standard: [terminal.rawValue, terminal.rawValue, terminal.rawValue])
      var text = ""
      var room = [UInt8](repeating: 0, count: 65536)
      func readSome() throws {
        var entry = pollfd(fd: master.rawValue, events: Int16(POLLIN), revents: 0)
        try #require(unsafe poll(&entry, 1, Int32(Patience.limit / .milliseconds(1))) == 1, "top says nothing")
        let count = unsafe read(master.rawValue, &room, room.count)
        text += String(decoding: room[..<max(count, 0)], as: UTF8.self)
      }
      while text.components(separatedBy: "p99").count < 4 { try readSome() }
      try #require(unsafe write(master.rawValue, "q", 1) == 1)
      while !text.contains("\u{1b}[?1049l") { try readSome() }
      #expect(child.wait() == 0)
      var settings = termios()
      #expect(unsafe tcgetattr(terminal.rawValue, &settings) == 0)
      #expect(settings.c_lflag & tcflag_t(ICANON | ECHO) == tcflag_t(ICANON | ECHO))
      for line in text.replacing("\u{1b}[H", with: "\r\n").replacing(/\u{1b}\[[?0-9]*[A-Za-z]/, with: "").split(
        separator: "\r\n")
      {
        #expect(line.count <= 80, "\(line)")
      }
      #expect(text.contains("a.sock idle"))
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }
}
