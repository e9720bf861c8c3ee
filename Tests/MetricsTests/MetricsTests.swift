/// Metrics as collectors read them, and the server that they read them from.
import CLinux
import Foundation
import Glibc
import Sockets
import SystemPackage
import Testing
import VirtioCore

@testable import MetricsExport

@Suite struct ExpositionTests {
  private static func text(_ page: Exposition) -> String { String(decoding: page.bytes, as: UTF8.self) }

  @Test func familiesAndSamples() {
    var page = Exposition()
    page.begin("a_total", .counter, "Things.")
    page.sample([], UInt64.max)
    page.sample([("disk", "x")], 1.5)
    page.begin("b", .gauge, "A \\ and\na line.")
    page.sample([("disk", "q\"\\\n\u{1b}z"), ("kind", "read")], true)
    #expect(
      Self.text(page) == """
        # HELP a_total Things.
        # TYPE a_total counter
        a_total 18446744073709551615
        a_total{disk="x"} 1.5
        # HELP b A \\\\ and\\na line.
        # TYPE b gauge
        b{disk="q\\"\\\\\\nz",kind="read"} 1

        """)
  }

  @Test func histogramsEndWithEverything() {
    var page = Exposition()
    page.begin("h_seconds", .histogram, "How long.")
    page.histogram([("disk", "x")], buckets: [(0.000001, 3), (0.5, 4), (10, 4)], sum: 2.25, count: 5)
    #expect(
      Self.text(page) == """
        # HELP h_seconds How long.
        # TYPE h_seconds histogram
        h_seconds_bucket{disk="x",le="1e-06"} 3
        h_seconds_bucket{disk="x",le="0.5"} 4
        h_seconds_bucket{disk="x",le="10"} 4
        h_seconds_bucket{disk="x",le="+Inf"} 5
        h_seconds_sum{disk="x"} 2.25
        h_seconds_count{disk="x"} 5

        """)
  }

  @Test(
    arguments: [
      ("9100", "127.0.0.1:9100"), ("0.0.0.0:1", "0.0.0.0:1"), ("[::1]:9100", "[::1]:9100"), ("/run/x", "/run/x"),
      ("./9100", "./9100"),
      ("0", nil), ("65536", nil), ("x", nil), ("::1:9100", nil), ("[127.0.0.1]:1", nil), (":9100", nil),
      ("localhost:9100", nil), ("", nil),
      ("127.0.0.1:", nil), ("[]:1", nil),
    ] as [(String, String?)])
  func addresses(_ text: String, _ meaning: String?) {
    #expect(MetricsAddress(text).map { "\($0)" } == meaning)
  }
}

/// A metrics server in its own thread.
private final class Page: @unchecked Sendable {
  private let loop: EventLoop
  private let server: MetricsServer
  private let thread: SystemThread
  private let ends: (OwnedDescriptor, OwnedDescriptor)
  let port: UInt16

  init(_ address: MetricsAddress = .internet(host: "127.0.0.1", port: 0), bytes: Int = 0) throws {
    let loop = try EventLoop()
    self.loop = loop
    let page = Array("# a page\n".utf8) + [UInt8](repeating: UInt8(ascii: "\n"), count: bytes)
    server = try MetricsServer(on: address, in: loop) { page }
    port = server.port ?? 0
    try server.open()
    var pipe: [Int32] = [-1, -1]
    try #require(unsafe pipe2(&pipe, O_CLOEXEC) == 0)
    ends = (OwnedDescriptor(pipe[0]), OwnedDescriptor(pipe[1]))
    _ = try loop.add(pipe[0]) { _ in loop.stop() }
    let handed = Handed(loop: loop)
    thread = try SystemThread(name: "page") { try? handed.loop.run() }
  }

  private struct Handed: @unchecked Sendable { let loop: EventLoop }

  func end() {
    _ = unsafe write(ends.1.rawValue, "x", 1)
    thread.join()
    server.close()
  }

  /// A connection on which this text was sent.
  func connect(_ text: String) throws -> OwnedDescriptor {
    let socket = OwnedDescriptor(Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0))
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let result = unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe Glibc.connect(socket.rawValue, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    try #require(result == 0)
    try say(text, socket)
    return socket
  }

  func say(_ text: String, _ socket: OwnedDescriptor) throws {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = unsafe bytes.withUnsafeBytes { unsafe send(socket.rawValue, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
      // The server may have read enough, and closed the connection.
      guard count > 0 else { return }
      bytes = bytes.dropFirst(count)
    }
  }

  /// Everything until the end of the connection.
  func answer(_ socket: OwnedDescriptor) throws -> String {
    var answer: [UInt8] = []
    var room = [UInt8](repeating: 0, count: 65536)
    while true {
      var entry = pollfd(fd: socket.rawValue, events: Int16(POLLIN), revents: 0)
      try #require(unsafe poll(&entry, 1, Int32(Patience.limit / .milliseconds(1))) == 1, "no answer")
      let count = unsafe read(socket.rawValue, &room, room.count)
      guard count > 0 else { return String(decoding: answer, as: UTF8.self) }
      answer += room[..<count]
    }
  }

  func ask(_ text: String) throws -> String { try answer(try connect(text)) }
}

@Suite struct MetricsServerTests {
  @Test(arguments: [
    ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK", true),
    ("GET / HTTP/1.0\n\n", "HTTP/1.1 200 OK", true),
    ("GET /metrics?x=y HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", true),
    ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", false),
    ("GET /other HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found", false),
    ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", false),
    ("nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request", false),
    ("GET  /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request", false),
    ("\r\n\r\n", "HTTP/1.1 400 Bad Request", false),
    (String(repeating: "x", count: 8193), "HTTP/1.1 431 Request Header Fields Too Large", false),
  ])
  func requests(_ request: String, _ status: String, hasPage: Bool) throws {
    let page = try Page()
    defer { page.end() }
    let answer = try page.ask(request)
    #expect(answer.hasPrefix(status + "\r\n"))
    #expect(answer.hasSuffix("\r\n\r\n") != hasPage)
    #expect(answer.hasSuffix("\r\n\r\n# a page\n") == hasPage)
    #expect(answer.contains("\r\nContent-Length: \(hasPage || request.hasPrefix("HEAD") ? 9 : 0)\r\n"))
  }

  @Test func aPageThatDoesNotFitTheSocketComesWhole() throws {
    let page = try Page(bytes: 8 << 20)
    defer { page.end() }
    #expect(try page.ask("GET / HTTP/1.1\r\n\r\n").utf8.count > 8 << 20)
  }

  /// A client that is slow, sends nothing or disconnects blocks the page only for a few seconds.
  @Test func strangersAreLetGoOf() throws {
    let page = try Page()
    defer { page.end() }
    let silent = try (0..<8).map { try page.connect($0 % 2 == 0 ? "" : "GET /met") }
    for _ in 0..<20 { _ = try page.connect("GET") }
    #expect(try page.ask("GET / HTTP/1.1\r\n\r\n").hasSuffix("# a page\n"))
    for socket in silent { #expect(try page.answer(socket).isEmpty) }
  }

  @Test func aRequestComesInPieces() throws {
    let page = try Page()
    defer { page.end() }
    let socket = try page.connect("G")
    for letter in "ET / HTTP/1.1\r\nHost: x\r\n\r\n" { try page.say(String(letter), socket) }
    #expect(try page.answer(socket).hasSuffix("# a page\n"))
  }

  @Test func anAddressThatIsInUseIsASentence() throws {
    let page = try Page()
    defer { page.end() }
    let loop = try EventLoop()
    let sentence = #expect(throws: SocketError.self) {
      _ = try MetricsServer(on: .internet(host: "127.0.0.1", port: page.port), in: loop) { [] }
    }
    #expect(sentence?.description.contains("another server is listening on '127.0.0.1:\(page.port)'") == true)
  }

  @Test func aPathWorksToo() throws {
    let path = NSTemporaryDirectory() + "metrics-" + UUID().uuidString.prefix(8)
    let page = try Page(.path(path))
    let socket = try UnixSocket.connect(to: path)
    try page.say("GET / HTTP/1.1\r\n\r\n", socket)
    #expect(try page.answer(socket).hasSuffix("# a page\n"))
    page.end()
    #expect(!FileManager.default.fileExists(atPath: path))
  }
}
