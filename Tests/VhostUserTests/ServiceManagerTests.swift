/// Notifications to a service manager, and sockets that it passes.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import Sockets
@testable import VhostUser

/// Listens for notifications as a service manager does.
private final class Manager {
  private let socket: OwnedDescriptor
  /// The address for NOTIFY_SOCKET.
  let address: String
  private var arrived: [[String: String]] = []

  /// - Parameter isAbstract: the name is in the abstract namespace, not in a file system.
  init(_ directory: String, isAbstract: Bool = false) throws {
    let path = directory + "/notify"
    address = (isAbstract ? "@" : "") + path
    socket = OwnedDescriptor(Self.datagram())
    var name = sockaddr_un()
    name.sun_family = sa_family_t(AF_UNIX)
    let bytes = (isAbstract ? [0] : []) + Array(path.utf8)
    unsafe withUnsafeMutableBytes(of: &name.sun_path) { room in unsafe room.copyBytes(from: bytes) }
    let length = socklen_t(2 + bytes.count)
    let result = unsafe withUnsafePointer(to: &name) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe bind(socket.rawValue, $0, length) }
    }
    try #require(result == 0, "\(path): \(errno)")
  }

  private static func datagram() -> Int32 {
    Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
  }

  /// Fills its buffer, so that no other message fits.
  func fill(_ directory: String) throws {
    let sender = OwnedDescriptor(Self.datagram())
    var name = sockaddr_un()
    name.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &name.sun_path) { room in unsafe room.copyBytes(from: Array(address.utf8)) }
    let text = Array("X=filler".utf8)
    var sent = 0
    while sent >= 0 {
      sent = unsafe withUnsafePointer(to: &name) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          unsafe sendto(
            sender.rawValue, text, text.count, Int32(MSG_DONTWAIT), $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
    }
    try #require(errno == EAGAIN)
  }

  /// Waits for the next message with this word.
  @discardableResult
  func next(_ word: String) throws -> [String: String] {
    var found: [String: String]?
    try wait(until: "the manager is told \(word)") {
      read()
      while found == nil, !arrived.isEmpty {
        let message = arrived.removeFirst()
        if message[word] != nil { found = message }
      }
      return found != nil
    }
    return try #require(found)
  }

  /// Messages that have arrived and were not taken yet.
  func rest() -> [[String: String]] {
    read()
    return arrived
  }

  private func read() {
    var room = [UInt8](repeating: 0, count: 4096)
    while true {
      let count = unsafe recv(socket.rawValue, &room, room.count, Int32(MSG_DONTWAIT))
      guard count >= 0 else { return }
      let lines = String(decoding: room[..<count], as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false)
      let pairs = lines.map { line in
        let sides = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        return (String(sides[0]), sides.count > 1 ? String(sides[1]) : "")
      }
      arrived.append(Dictionary(pairs, uniquingKeysWith: { first, _ in first }))
    }
  }
}

/// Starts `vmm-blk` as a service manager does.
///
/// - Parameters:
///   - variables: assignments for a shell, where $$ is the process.
///   - passed: becomes descriptor 3.
private func service(_ variables: String, _ words: [String], passed: Int32? = nil) throws -> Program {
  let input = passed.map { FileHandle(fileDescriptor: $0, closeOnDealloc: false) } ?? .nullDevice
  let script = "\(variables) exec \"$@\"" + (passed == nil ? "" : " 3<&0 0</dev/null")
  return try Program(["-c", script, "sh", Program.path.path] + words, input: input, program: URL(fileURLWithPath: "/bin/sh"))
}

private func disk(_ directory: String, _ name: String = "disk") throws -> String {
  let path = "\(directory)/\(name)"
  try Data(count: 1 << 20).write(to: URL(fileURLWithPath: path))
  return path
}

private func end(_ program: Program) {
  program.process.terminate()
  let end = program.finish()
  #expect(end.status == 0, "\(end.errors)")
}

@Suite struct ServiceManagerTests {
  @Test(arguments: [false, true]) func theManagerIsToldThatTheDiskIsServedAndThatItEnds(isAbstract: Bool) throws {
    try withDirectory { directory in
      let manager = try Manager(directory, isAbstract: isAbstract)
      let image = try disk(directory)
      let server = try service(
        "NOTIFY_SOCKET=\(manager.address)", ["serve", "--blk-file", image, "--socket-path", directory + "/s"])
      let ready = try manager.next("READY")
      #expect(ready["READY"] == "1")
      #expect(ready["MAINPID"] == "\(server.process.processIdentifier)")
      #expect(ready["STATUS"] == "serving \(image) on \(directory)/s")
      #expect(try Frontend(connectingTo: directory + "/s").handshake().queueCount == 16)
      #expect(manager.rest().isEmpty)
      end(server)
      #expect(try manager.next("STOPPING")["STOPPING"] == "1")
      #expect(manager.rest().isEmpty)
    }
  }

  @Test func aMemoryFileIsAServiceToo() throws {
    try withDirectory { directory in
      let manager = try Manager(directory)
      let server = try service(
        "NOTIFY_SOCKET=\(manager.address)",
        ["run", "--memory", directory + "/memory", "--create", "4M", "--blk-file", try disk(directory)])
      #expect(try manager.next("READY")["STATUS"] == "serving \(directory)/disk on \(directory)/memory")
      end(server)
      try manager.next("STOPPING")
    }
  }

  /// The start and the end of a reload are reported, whether it succeeds or not; other changes are reported as well.
  @Test func theManagerSeesTheListBeingRead() throws {
    try withDirectory { directory in
      func list(_ names: [String]) throws {
        let entries = try names.map {
          "{\"blk-file\": \"\(try disk(directory, $0))\", \"socket-path\": \"\(directory)/\($0).sock\", \"num-queues\": 1}"
        }
        try Data("[\(entries.joined(separator: ","))]".utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      }
      let manager = try Manager(directory)
      try list(["a", "b"])
      let server = try service(
        "NOTIFY_SOCKET=\(manager.address)", ["serve", "--disks", directory + "/list", "--control", directory + "/control"])
      #expect(try manager.next("READY")["STATUS"] == "serving 2 disks")
      var times: [Int64] = []
      for (names, disks) in [(["a", "b", "c"], 3), (["a", "a"], 3), (["c", "a"], 2)] {
        try list(names)
        kill(server.process.processIdentifier, SIGHUP)
        let begin = try manager.next("RELOADING")
        times.append(try #require(begin["MONOTONIC_USEC"].flatMap { Int64($0) }))
        let end = try manager.next("READY")
        #expect(end["STATUS"] == "serving \(disks) disks")
        #expect(end["RELOADING"] == nil)
      }
      #expect(times == times.sorted() && Set(times).count == times.count)
      let control = try Taker(directory + "/control")
      _ = try control.send(#"{"request":"remove","disk":"\#(directory)/c.sock"}"#)
      #expect(try manager.next("STATUS")["STATUS"] == "serving \(directory)/a on \(directory)/a.sock")
      end(server)
      try manager.next("STOPPING")
    }
  }

  // MARK: The watchdog

  @Test(arguments: ["WATCHDOG_PID=$$", ""]) func theManagerHearsThatTheServerRuns(process: String) throws {
    try withDirectory { directory in
      let manager = try Manager(directory)
      let server = try service(
        "NOTIFY_SOCKET=\(manager.address) WATCHDOG_USEC=20000 \(process)",
        ["serve", "--blk-file", try disk(directory), "--socket-path", directory + "/s"])
      try manager.next("READY")
      for _ in 0..<5 { #expect(try manager.next("WATCHDOG")["WATCHDOG"] == "1") }
      end(server)
    }
  }

  @Test(arguments: [
    "WATCHDOG_USEC=1000 WATCHDOG_PID=1", "WATCHDOG_USEC=0", "WATCHDOG_USEC=-1", "WATCHDOG_USEC=often", "WATCHDOG_PID=$$",
  ])
  func nobodyIsToldWhoDoesNotWatch(variables: String) throws {
    try withDirectory { directory in
      let manager = try Manager(directory)
      let server = try service(
        "NOTIFY_SOCKET=\(manager.address) \(variables)",
        ["serve", "--blk-file", try disk(directory), "--socket-path", directory + "/s"])
      try manager.next("READY")
      _ = try Frontend(connectingTo: directory + "/s").handshake()
      usleep(20_000)
      #expect(manager.rest().isEmpty)
      end(server)
    }
  }

  // MARK: A missing or slow manager

  @Test func aManagerThatDoesNotReadHoldsNothingUp() throws {
    try withDirectory { directory in
      let manager = try Manager(directory)
      try manager.fill(directory)
      let server = try service(
        "NOTIFY_SOCKET=\(manager.address) WATCHDOG_USEC=20000",
        ["serve", "--blk-file", try disk(directory), "--socket-path", directory + "/s"])
      #expect(server.firstLine().hasPrefix("Serving "))
      #expect(try Frontend(connectingTo: directory + "/s").handshake().queueCount == 16)
      // Then it reads.
      try manager.next("READY")
      try manager.next("WATCHDOG")
      end(server)
    }
  }

  @Test(arguments: [
    ("DIR/nobody", "cannot be notified of the service"), ("DIR/disk", "cannot be notified of the service"),
    ("@DIR/nobody", "cannot be notified of the service"), ("vsock:2:1234", "neither a path nor the name"),
    ("/" + String(repeating: "n", count: 108), "neither a path nor the name"), ("@", "neither a path nor the name"),
  ])
  func aManagerThatIsNotThereIsOneLine(address: String, sentence: String) throws {
    try withDirectory { directory in
      let server = try service(
        "NOTIFY_SOCKET=" + address.replacingOccurrences(of: "DIR", with: directory),
        ["serve", "--blk-file", try disk(directory), "--socket-path", directory + "/s"])
      #expect(server.firstLine().hasPrefix("Serving "))
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0)
      #expect(end.errors.split(separator: "\n").count { $0.contains("service manager") } == 1, "\(end.errors)")
      #expect(end.errors.contains(sentence), "\(end.errors)")
    }
  }

  /// After a takeover the new server is the service, and the old one reports nothing more about it.
  @Test func aTakeoverChangesTheMainProcess() throws {
    try withDirectory { directory in
      let manager = try Manager(directory)
      let words = ["serve", "--blk-file", try disk(directory), "--control", directory + "/control"]
      let before = try service("NOTIFY_SOCKET=\(manager.address)", words + ["--socket-path", directory + "/s"])
      try manager.next("READY")
      let after = try service("NOTIFY_SOCKET=\(manager.address)", words + ["--take-over", directory + "/control"])
      let ready = try manager.next("READY")
      #expect(ready["MAINPID"] == "\(after.process.processIdentifier)")
      let end = before.finish()
      #expect(end.status == 0, "\(end.errors)")
      #expect(manager.rest().allSatisfy { $0["STOPPING"] == nil })
      VhostUserTests.end(after)
      try manager.next("STOPPING")
    }
  }
}

@Suite struct ActivationTests {
  /// Without arguments, by its path, and in a list: the socket's file stays, because the manager keeps listening.
  @Test(arguments: ["", "--socket-path", "--disks"]) func aDiskIsServedOnTheSocketThatWasPassed(word: String) throws {
    try withDirectory { directory in
      let (path, image) = (directory + "/s", try disk(directory))
      let listener = try Listener(path: path)
      let entry = #"{"blk-file": "\#(image)", "socket-path": "\#(path)"}"#
      try Data("[\(entry)]".utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let words =
        switch word {
        case "": ["--blk-file", image]
        case "--disks": ["--disks", directory + "/list"]
        default: ["--blk-file", image, "--socket-path", path]
        }
      for _ in 0..<2 {
        let server = try service(
          "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk", ["serve", "--control", directory + "/control"] + words,
          passed: listener.socket.rawValue)
        #expect(server.firstLine().hasPrefix("Serving "))
        for _ in 0..<2 { #expect(try Frontend(connectingTo: path).handshake().queueCount == 16) }
        if word == "--disks" {
          // The server no longer uses it, but the manager keeps it, so the disk can be added again.
          let control = try Taker(directory + "/control")
          _ = try control.send(#"{"request":"remove","disk":"\#(path)"}"#)
          let added = try #require(try control.send(#"{"request":"add","entry":\#(entry)}"#))
          #expect(!added.contains("error"), "\(added)")
          #expect(try Frontend(connectingTo: path).handshake().queueCount == 16)
        }
        server.process.terminate()
        let end = server.finish()
        #expect(end.status == 0, "\(end.errors)")
        #expect(!end.errors.contains("no disk is served"), "\(end.errors)")
        #expect(FileManager.default.fileExists(atPath: path))
      }
    }
  }

  @Test func aSocketThatNobodyIsServedOnIsSaid() throws {
    try withDirectory { directory in
      let listener = try Listener(path: directory + "/other")
      let server = try service(
        "LISTEN_PID=$$ LISTEN_FDS=1", ["serve", "--blk-file", try disk(directory), "--socket-path", directory + "/s"],
        passed: listener.socket.rawValue)
      #expect(server.firstLine().contains("on \(directory)/s"))
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0)
      #expect(
        end.errors.contains("no disk is served on these sockets, which were passed in LISTEN_FDS: \(directory)/other"),
        "\(end.errors)")
    }
  }

  @Test(arguments: [
    ("LISTEN_PID=$$ LISTEN_FDS=1", 69, "descriptor 3, which was passed in LISTEN_FDS, is not a listening UNIX stream socket"),
    ("LISTEN_PID=$$ LISTEN_FDS=2", 69, "2 sockets were passed"),
    ("LISTEN_PID=1 LISTEN_FDS=1", 64, "--socket-path or --fd"), ("LISTEN_FDS=1", 64, "--socket-path or --fd"),
    ("LISTEN_PID=$$ LISTEN_FDS=0", 64, "--socket-path or --fd"),
    ("LISTEN_PID=$$ LISTEN_FDS=-1", 64, "--socket-path or --fd"),
    ("LISTEN_PID=$$ LISTEN_FDS=many", 64, "--socket-path or --fd"),
  ])
  func whatCannotBeServedOnIsOneSentence(variables: String, status: Int32, sentence: String) throws {
    try withDirectory { directory in
      let (ours, theirs) = socketPair()
      let server = try service(variables, ["serve", "--blk-file", try disk(directory)], passed: theirs.rawValue)
      let end = server.finish()
      #expect(end.status == status)
      #expect(end.errors.contains(sentence), "\(end.errors)")
      withExtendedLifetime(ours) {}
    }
  }
}
