/// `vmm-blk serve` as a program: arguments, exit codes, signals, and what it leaves behind.
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import Sockets
@testable import VhostUser

@Suite struct ServeCommandTests {
  @Test func capabilitiesAreTheConventionalJSON() throws {
    let result = try Program(["serve", "--frobnicate", "--print-capabilities", "--blk-file"]).finish()
    #expect(result.status == 0)
    let object = try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any]
    #expect(object?["type"] as? String == "block")
    #expect(object?["features"] as? [String] == ["read-only", "blk-file"])
    #expect(result.errors.isEmpty)
  }

  /// One sentence, a status other than 0, nothing left behind.
  @Test(arguments: [
    (["--blk-file", "DIR/none", "--socket-path", "DIR/s"], "there is no image"),
    (["--blk-file", "DIR/empty", "--socket-path", "DIR/s"], "empty"),
    (["--blk-file", "DIR/odd", "--socket-path", "DIR/s"], "multiple"),
    (["--blk-file", "DIR/disk"], "--socket-path or --fd"),
    (["--socket-path", "DIR/s"], "--blk-file"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--fd", "0"], "both name the socket"),
    (["--blk-file", "DIR/disk", "--fd", "0"], "is not an open stream socket"),
    (["--blk-file", "DIR/disk", "--fd", "77"], "is not an open stream socket"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/none/s"], "does not exist"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/disk"], "is not a socket"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/live"], "another server is listening"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/" + String(repeating: "s", count: 108)], "choose a shorter one"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--num-queues", "0"], "1 to 256"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--num-queues", "8", "--threads", "9"], "threads"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--engine", "warp"], "warp"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--logical-block-size", "1000"], "power of two"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--log-level", "loud"], "loud"),
    (["--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--no-such-option"], "--no-such-option"),
    (["--disks", "DIR/none"], "the list of disks DIR/none cannot be read"),
    (["--disks", "DIR"], "cannot be read"),
    (["--disks", "DIR/disk"], "is not a JSON array of disks"),
    (["--disks", "DIR/disk", "--blk-file", "DIR/disk"], "given in its entry"),
    (["--disks", "DIR/disk", "--socket-path", "DIR/s"], "given in its entry"),
    (["--disks", "DIR/disk", "--fd", "0"], "given in its entry"),
    (["--disks", "DIR/disk", "--serial", "1"], "given in its entry"),
  ])
  func mistakesAreOneSentence(arguments: [String], sentence: String) throws {
    try withDirectory { directory in
      for (name, size) in [("disk", 1 << 20), ("empty", 0), ("odd", 1000)] {
        try Data(count: size).write(to: URL(fileURLWithPath: directory + "/" + name))
      }
      let live = try Listener(path: directory + "/live")
      let arguments = arguments.map { $0.replacingOccurrences(of: "DIR", with: directory) }
      let result = try Program(["serve"] + arguments).finish()
      #expect(result.status != 0)
      #expect(result.output.isEmpty)
      let errors = result.errors.split(separator: "\n").filter { $0.hasPrefix("Error: ") }
      #expect(errors.count == 1)
      let expected = sentence.replacingOccurrences(of: "DIR", with: directory)
      #expect(errors.first?.contains(expected) == true, "\(result.errors)")
      let files = try FileManager.default.contentsOfDirectory(atPath: directory)
      #expect(Set(files) == ["disk", "empty", "odd", "live"])
      withExtendedLifetime(live) {}
    }
  }

  /// A queue runs when the signal arrives; everything is shut down in order all the same.
  @Test(arguments: [SIGTERM, SIGINT]) func signalsEndIt(signal: Int32) throws {
    try withDirectory { directory in
      let path = directory + "/disk.sock"
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let program = try Program(["serve", "--blk-file", directory + "/disk", "--socket-path", path, "--num-queues", "2"])
      let line = program.firstLine()
      #expect(line.contains("Serving \(directory)/disk on \(path)"))
      #expect(line.contains("vhost-user-blk-pci"))
      let frontend = try Frontend(connectingTo: path)
      let offer = try frontend.handshake()
      #expect(offer.queueCount == 2)
      #expect(try frontend.configuration(at: 0, count: 8).word64(at: 0) == 2048)
      try frontend.setFeatures(offer.features.subtracting(.packedRing))
      let memory = TestMemory.file("vhost-serve", size: Int(Rig.memorySize))
      try frontend.setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
      let address = Rig.address(1)
      try frontend.start(
        FrontendQueue(
          index: 1, size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
          usedRing: address.usedRing, kick: eventCounter(), call: eventCounter()))
      kill(program.process.processIdentifier, signal)
      let result = program.finish()
      #expect(result.status == 0, "\(result.errors)")
      #expect(program.process.terminationReason == .exit)
      #expect(!FileManager.default.fileExists(atPath: path))
      #expect(throws: FrontendError.closed(during: .getFeatures)) { _ = try frontend.features() }
    }
  }

  @Test func descriptorOfAListeningSocket() throws {
    try withDirectory { directory in
      let path = directory + "/disk.sock"
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let listener = try Listener(path: path)
      let program = try Program(
        ["serve", "--blk-file", directory + "/disk", "--fd", "0"],
        input: FileHandle(fileDescriptor: listener.socket.rawValue, closeOnDealloc: false))
      #expect(program.firstLine().contains("descriptor 0"))
      for _ in 0..<2 { #expect(try Frontend(connectingTo: path).handshake().queueCount == 16) }
      kill(program.process.processIdentifier, SIGTERM)
      #expect(program.finish().status == 0)
      // The file belongs to its creator.
      #expect(FileManager.default.fileExists(atPath: path))
    }
  }

  /// With a connection that was passed to it, the program ends when the front-end disconnects.
  @Test func descriptorOfAConnection() throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      var ends: (ours: OwnedDescriptor, theirs: OwnedDescriptor)? = socketPair()
      let program = try Program(
        ["serve", "--blk-file", directory + "/disk", "--fd", "0"],
        input: FileHandle(fileDescriptor: ends?.theirs.rawValue ?? -1, closeOnDealloc: false))
      do {
        let frontend = try Frontend(socket: #require(ends).ours)
        ends = nil
        #expect(try frontend.handshake().queueCount == 16)
      }
      #expect(program.finish().status == 0)
    }
  }

  /// A verification succeeds only if it compared some bytes.
  @Test func aVerificationOfNothingIsAFailure() throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let server = try Program(["serve", "--blk-file", directory + "/disk", "--socket-path", directory + "/s"])
      #expect(server.firstLine().hasPrefix("Serving"))
      func verify(_ words: String...) throws -> (status: Int32, output: String, errors: String) {
        try Program(["guest", "--socket-path", directory + "/s", "verify"] + words).finish()
      }
      let nothing = try verify("--seconds", "0.000000001")
      #expect(nothing.status == 1 && nothing.errors.contains("nothing was verified"), "\(nothing)")
      #expect(!nothing.output.contains("every byte is right"), "\(nothing)")
      let something = try verify("--bytes", "64k")
      #expect(something.status == 0 && something.output.contains("every byte is right"), "\(something)")
      kill(server.process.processIdentifier, SIGTERM)
      #expect(server.finish().status == 0)
    }
  }

  /// Opening a FIFO without a writer never returns.
  @Test(arguments: [SIGTERM, SIGINT]) func aStartThatHangsEndsOnASignal(signal: Int32) throws {
    try withDirectory { directory in
      let list = directory + "/list"
      try #require(unsafe mkfifo(list, 0o600) == 0)
      let server = try Program(["serve", "--disks", list])
      let status = "/proc/\(server.process.processIdentifier)/status"
      try wait(until: "the server has set up its signals") {
        let line = try String(contentsOfFile: status, encoding: .utf8).split(separator: "\n").first { $0.hasPrefix("SigBlk:") }
        let blocked = line.flatMap { UInt64($0.dropFirst("SigBlk:\t".count), radix: 16) } ?? 0
        return blocked & 1 << UInt64(signal - 1) != 0
      }
      kill(server.process.processIdentifier, signal)
      let result = server.finish()
      #expect(result.status == 0 && server.process.terminationReason == .exit, "\(result)")
      #expect(result.errors.contains("before the disks were open"), "\(result.errors)")
    }
  }
}
