/// Socket paths: valid, stale and impossible ones.
import CLinux
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import Sockets
@testable import VhostUser

@Suite struct SocketTests {
  /// Messages that the socket accepts in pieces arrive whole, and their descriptors only once.
  @Test func messagesThatAreSentInPieces() throws {
    let (ours, theirs) = socketPair()
    // The kernel uses the smallest size it allows, a fraction of a message.
    var size: Int32 = 1
    #expect(unsafe setsockopt(ours.rawValue, SOL_SOCKET, SO_SNDBUF, &size, 4) == 0)
    let payload = (0..<8000).map { UInt8(truncatingIfNeeded: $0) }
    var writer = MessageWriter()
    var reader = MessageReader()
    for _ in 0..<8 { writer.enqueue(Message(request: 5, payload: payload, descriptors: [eventCounter()])) }
    try writer.flush(ours.rawValue)
    #expect(!writer.isIdle)
    var received: [Message] = []
    while received.count < 8 {
      switch try reader.read(theirs.rawValue) {
      case .message(let message): received.append(message)
      case .nothingYet: try writer.flush(ours.rawValue)
      case .ended:
        Issue.record("the connection ended")
        return
      }
    }
    #expect(received.allSatisfy { $0.payload == payload && $0.descriptors.count == 1 })
  }

  @Test func staleSocketIsReplaced() throws {
    try withDirectory { directory in
      let path = directory + "/disk.sock"
      // A server that died leaves its socket file: bound once, but without a listener.
      _ = try UnixSocket.listen(at: path)
      #expect(FileManager.default.fileExists(atPath: path))
      do {
        let listener = try Listener(path: path)
        _ = try UnixSocket.connect(to: path)
        #expect(listener.path == path)
      }
      #expect(!FileManager.default.fileExists(atPath: path))
    }
  }

  @Test func liveServerIsLeftAlone() throws {
    try withDirectory { directory in
      let path = directory + "/disk.sock"
      let first = try Listener(path: path)
      #expect(throws: SocketError.inUse(path)) { try Listener(path: path) }
      _ = try UnixSocket.connect(to: path)
      withExtendedLifetime(first) {}
    }
  }

  /// A file that replaced the server's socket is not removed.
  @Test func successorsSocketStays() throws {
    try withDirectory { directory in
      let path = directory + "/disk.sock"
      do {
        let first = try Listener(path: path)
        try FileManager.default.removeItem(atPath: path)
        try Data().write(to: URL(fileURLWithPath: path))
        withExtendedLifetime(first) {}
      }
      #expect(FileManager.default.fileExists(atPath: path))
    }
  }

  @Test func filesThatAreNoSocketsAreNotTouched() throws {
    try withDirectory { directory in
      let path = directory + "/image"
      try Data([1]).write(to: URL(fileURLWithPath: path))
      #expect(throws: SocketError.notASocket(path)) { try Listener(path: path) }
      #expect(FileManager.default.contents(atPath: path) == Data([1]))
    }
  }

  @Test func pathsThatCannotBe() throws {
    try withDirectory { directory in
      let missing = directory + "/no/disk.sock"
      #expect(throws: SocketError.missingDirectory(missing)) { try Listener(path: missing) }
      let long = directory + "/" + String(repeating: "s", count: 108 - directory.utf8.count - 1)
      #expect(long.utf8.count == 108)
      #expect(throws: SocketError.pathTooLong(long, limit: 107)) { try Listener(path: long) }
      #expect(throws: Never.self) { try Listener(path: String(long.dropLast())) }
      #expect(throws: SocketError.pathEmpty) { try Listener(path: "") }
      #expect(throws: SocketError.missing(directory + "/x")) { try UnixSocket.connect(to: directory + "/x") }
      // Nothing is left behind.
      #expect(FileManager.default.subpaths(atPath: directory) == [])
    }
  }

  @Test func descriptorsThatAreHandedIn() throws {
    try withDirectory { directory in
      let listening = try UnixSocket.listen(at: directory + "/l.sock")
      guard case .listening(let listener) = try ServerSocket.adopt(dup(listening.rawValue)) else {
        Issue.record("a listening socket was not recognized")
        return
      }
      #expect(listener.path == nil)
      let (one, other) = socketPair()
      guard case .connected = try ServerSocket.adopt(dup(one.rawValue)) else {
        Issue.record("a connected socket was not recognized")
        return
      }
      withExtendedLifetime(other) {}
      let file = eventCounter()
      #expect(throws: SocketError.notASocketDescriptor(file.rawValue)) { try ServerSocket.adopt(file.rawValue) }
      #expect(throws: SocketError.notASocketDescriptor(-1)) { try ServerSocket.adopt(-1) }
    }
  }
}
