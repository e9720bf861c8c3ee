/// Lines and descriptors over a control socket: in pieces, too long, too many, and from the wrong users.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import Control
@testable import Sockets

@Suite struct ControlStreamTests {
  private struct Body: Codable, Equatable {
    var name: String
    var numbers: [UInt64] = []
  }

  private static func send(_ text: String, to socket: OwnedDescriptor) {
    let bytes = Array(text.utf8)
    #expect(unsafe clinux_send_with_fds(socket.rawValue, bytes, bytes.count, nil, 0) == bytes.count)
  }

  /// Each line has its own descriptors, however many pieces they arrive in and whatever comes before and after.
  @Test(arguments: [0, 1, 63, 64, 65, 200]) func descriptorsKeepToTheirLine(count: Int) throws {
    let (ours, theirs) = socketPair()
    // The kernel uses the smallest size it allows.
    var size: Int32 = 1
    #expect(unsafe setsockopt(ours.rawValue, SOL_SOCKET, SO_SNDBUF, &size, 4) == 0)
    let bodies = (0..<3).map { Body(name: "line \($0)", numbers: Array(repeating: .max, count: 500 * $0)) }
    var writer = ControlWriter()
    var reader = ControlReader()
    for (index, body) in bodies.enumerated() {
      writer.enqueue(ControlLine(body, descriptors: try (0..<(index == 1 ? count : 1)).map { _ in try .eventCounter() }))
    }
    var received: [ControlLine] = []
    let end = ContinuousClock.now + Patience.limit
    while received.count < bodies.count, .now < end {
      try writer.flush(ours.rawValue)
      switch try reader.read(theirs.rawValue) {
      case .line(let line): received.append(line)
      case .nothingYet: break
      case .ended: Issue.record("the connection ended")
      }
    }
    #expect(try received.map { try $0.decode(Body.self) } == bodies)
    #expect(received.map(\.descriptors.count) == [1, count, 1])
    #expect(writer.isIdle)
  }

  @Test(arguments: [
    ("[]\n", "a JSON object"), ("nothing\n", "a JSON object"), ("{\"descriptors\": 3}\n", "says that it brings 3"),
    ("{\"descriptors\": -1}\n", "more than 2048"), ("{\"descriptors\": \"x\"}\n", "\"descriptors\""),
    (String(repeating: " ", count: ControlLine.maximumSize + 1), "is longer than"), ("{\"half\"", "has closed the connection"),
  ]) func linesThatCannotBe(_ text: String, _ sentence: String) throws {
    let (ours, theirs) = socketPair()
    var reader = ControlReader()
    let error = try #require(throws: ControlError.self) {
      var rest = Array(text.utf8)[...]
      let end = ContinuousClock.now + Patience.limit
      while .now < end {
        if rest.isEmpty { _ = shutdown(ours.rawValue, Int32(SHUT_WR)) }
        let piece = Array(rest.prefix(4096))
        if !piece.isEmpty {
          let sent = unsafe clinux_send_with_fds(ours.rawValue, piece, piece.count, nil, 0)
          rest = rest.dropFirst(max(sent, 0))
        }
        if case .ended = try reader.read(theirs.rawValue) { return }
      }
    }
    #expect("\(error)".contains(sentence), "\(error)")
  }

  /// Unknown members of a newer version are ignored; a missing one is named.
  @Test func membersMoreAndLess() throws {
    let more = ControlLine(text: Array(#"{"name":"x","numbers":[18446744073709551615],"more":{}}"#.utf8), descriptors: [])
    #expect(try more.decode(Body.self) == Body(name: "x", numbers: [.max]))
    let less = ControlLine(text: Array(#"{"numbers":[]}"#.utf8), descriptors: [])
    let error = #expect(throws: ControlError.self) { try less.decode(Body.self) }
    #expect(error.map { "\($0)" }?.contains("\"name\" is missing") == true)
  }

  /// Requests are answered one at a time; the client notices when the server ends.
  @Test func questionsAndAnswers() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("control")
    let loop = try EventLoop()
    var events: [ControlEvent] = []
    let server = ControlServer(
      on: try Listener(path: path), in: loop, report: { events.append($0) },
      take: { line, connection in
        let name = (try? line.decode(Body.self).name) ?? "?"
        connection.answer(ControlLine(Body(name: "you said " + name), descriptors: line.descriptors))
      })
    try server.open()
    let client = try ControlClient(path: path, in: loop)
    var answers: [String] = []
    func ask(_ number: Int) {
      guard number < 20 else { return server.close() }
      client.ask(ControlLine(Body(name: "\(number)"), descriptors: (try? [.eventCounter()]) ?? [])) { result in
        let line = try? result.get()
        answers.append((try? line?.decode(Body.self).name) ?? "none")
        #expect(line?.descriptors.count == 1)
        ask(number + 1)
      }
    }
    client.whenEnded = { loop.stop() }
    loop.after(Patience.limit) { loop.stop() }
    ask(0)
    try loop.run()
    #expect(answers == (0..<20).map { "you said \($0)" })
    #expect(events.isEmpty)
    var after: ControlError?
    client.ask(ControlLine(Body(name: "late"))) { result in
      if case .failure(let error) = result { after = error }
    }
    #expect(after == .closed)
  }
}
