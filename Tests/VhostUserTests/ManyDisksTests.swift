/// `vmm-blk serve --disks`: many disks in one process, described by a file.
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct ManyDisksTests {
  /// An image of zeroes.
  private static func image(_ path: String, size: Int = 1 << 20) throws {
    try Data(count: size).write(to: URL(fileURLWithPath: path))
  }

  /// VIRTIO_BLK_F_RO.
  private static let readOnly = FeatureSet(rawValue: 1 << 5)

  /// Entries 1 and 2 are valid; the table lists what follows them. Each mistake is one sentence that names the entry, and
  /// everything that was opened for the entries before it is closed.
  @Test(arguments: [
    (#"7"#, "entry 3: it has to be an object"),
    (#"[]"#, "entry 3: it has to be an object"),
    (#"{}"#, #"entry 3: "blk-file" is missing"#),
    (#"{"blk-file": "DIR/c"}"#, #"entry 3: "socket-path" is missing"#),
    (#"{"socket-path": "DIR/c.sock"}"#, #"entry 3: "blk-file" is missing"#),
    (#"{"blk-file": null, "socket-path": "DIR/c.sock"}"#, #"entry 3: "blk-file" is missing"#),
    (#"{"blk-file": 1, "socket-path": "DIR/c.sock"}"#, #"entry 3: "blk-file" has to be a string"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "fd": 3}"#, #"entry 3: there is no "fd": use "#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "read-only": 1}"#, #""read-only" has to be true or false"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "no-lock": "no"}"#, #""no-lock" has to be true or false"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "num-queues": "2"}"#, #""num-queues" has to be a whole number"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "threads": 1.5}"#, #""threads" has to be a whole number"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "poll-us": 1e30}"#, #""poll-us" has to be a whole number"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "engine": "warp"}"#, #""engine" has to be one of auto, uring"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "direct": true}"#, #""direct" has to be a string"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "pin-cpus": "x"}"#, #""pin-cpus" has to be a list"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "waiting": "long"}"#, #""waiting" has to be sleep, poll"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "waiting": "busy", "poll-us": 5}"#, "give one of them"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "notify": "often"}"#, #""notify" has to be batch, each"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "uring": "x"}"#, #""uring" has to be words of"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "serial": "123456789012345678901"}"#, "has 21 bytes"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "poll-us": -1}"#, "is not from 0 to 1000000"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "num-queues": 257}"#, "entry 3 (DIR/c): 257 queues"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "queue-size-max": 3}"#, "entry 3 (DIR/c): a queue size of 3"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "logical-block-size": 513}"#, "block size of 513"),
    (#"{"blk-file": "DIR/none", "socket-path": "DIR/c.sock"}"#, "entry 3 (DIR/none): there is no image"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/none/c.sock"}"#, "entry 3 (DIR/c): the directory of"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c"}"#, "entry 3 (DIR/c): 'DIR/c' exists and is not a socket"),
    (#"{"blk-file": "DIR/c", "socket-path": ""}"#, #""socket-path" has to be a string that is not empty"#),
    (#"{"blk-file": "", "socket-path": "DIR/c.sock"}"#, #""blk-file" has to be a string that is not empty"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/a.sock"}"#, "entry 3 (DIR/c): it has the socket of entry 1"),
    (#"{"blk-file": "DIR/../DIRNAME/b", "socket-path": "DIR/c.sock"}"#, "it has the image of entry 2"),
    (#"{"blk-file": "DIR/b", "socket-path": "DIR/c.sock", "read-only": true}"#, "it has the image of entry 2"),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock"} 7"#, "is not a JSON array of disks"),
    (#"{"blk-file": "DIR/c""#, "is not a JSON array of disks"),
    (#"{"blk-file": "DIR/c\u0000/x", "socket-path": "DIR/c.sock"}"#, #""blk-file" has to be a string without a NUL in it"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock\u0000"}"#, #""socket-path" has to be a string without a NUL in it"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "blk-file": "DIR/a"}"#, #"entry 3 (DIR/"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "blk\u002dfile": "DIR/c"}"#, #""blk-file" is given twice"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "serial": "{\"", "serial": "2"}"#, #""serial" is given twice"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "blk-fil": 1}"#, #"there is no "blk-fil"; did you mean "blk-file"?"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "format": "vmdk"}"#, #""format" has to be one of auto, raw, qcow2"#),
    (#"{"blk-file": "DIR/c", "socket-path": "DIR/c.sock", "logical-block-size": "4q"}"#, "has to be a number of bytes"),
    (#"{"blk-file": "DIR/q", "socket-path": "DIR/c.sock"}"#, "entry 3 (DIR/q): DIR/q looks like a qcow2 image"),
  ])
  func mistakeInAnEntryNamesItAndLeavesNothing(entry: String, sentence: String) throws {
    try withDirectory { directory in
      for name in ["a", "b", "c"] { try Self.image(directory + "/" + name) }
      try (Data([0x51, 0x46, 0x49, 0xfb]) + Data(count: 4092)).write(to: URL(fileURLWithPath: directory + "/q"))
      func placed(_ text: String) -> String {
        text.replacingOccurrences(of: "DIRNAME", with: URL(fileURLWithPath: directory).lastPathComponent)
          .replacingOccurrences(of: "DIR", with: directory)
      }
      let list = """
        [{"blk-file": "DIR/a", "socket-path": "DIR/a.sock"}, {"blk-file": "DIR/b", "socket-path": "DIR/b.sock"}, \(entry)]
        """
      try Data(placed(list).utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let program = try Program(["serve", "--disks", directory + "/list"])
      let line = program.firstLine()
      #expect(line.isEmpty)
      if !line.isEmpty { kill(program.process.processIdentifier, SIGTERM) }
      let result = program.finish()
      #expect(result.status != 0)
      let errors = result.errors.split(separator: "\n").filter { $0.hasPrefix("Error: ") }
      #expect(errors.count == 1)
      #expect(errors.first?.contains(placed(sentence)) == true, "\(result.errors)")
      #expect(errors.first?.contains(directory + "/list") == true, "\(result.errors)")
      #expect(Set(try FileManager.default.contentsOfDirectory(atPath: directory)) == ["a", "b", "c", "q", "list"])
    }
  }

  @Test(arguments: [("[]", "lists no disk"), ("{}", "has to be an array of objects"), ("", "is not a JSON array")])
  func listsThatAreNone(text: String, sentence: String) throws {
    try withDirectory { directory in
      try Data(text.utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let result = try Program(["serve", "--disks", directory + "/list"]).finish()
      #expect(result.status != 0)
      #expect(result.errors.contains(sentence), "\(result.errors)")
    }
  }

  /// Each disk has its own size, queues and access mode; the command line provides what an entry leaves out.
  @Test func twentyDisksWithAFrontendEach() throws {
    try withDirectory { directory in
      let count = 20
      var entries: [[String: Any]] = []
      for index in 0..<count {
        try Self.image("\(directory)/\(index)", size: (index + 1) * 4096)
        var entry: [String: Any] = ["blk-file": "\(directory)/\(index)", "socket-path": "\(directory)/\(index).sock"]
        if index % 2 == 1 { entry["num-queues"] = 1 + index }
        if index % 3 == 1 { entry["read-only"] = true }
        entries.append(entry)
      }
      try JSONSerialization.data(withJSONObject: entries).write(to: URL(fileURLWithPath: directory + "/list"))
      let program = try Program(["serve", "--disks", directory + "/list", "--num-queues", "3", "--engine", "sync"])
      #expect(program.firstLine() == "Serving \(count) disks as \(directory)/list describes them.")

      var frontends: [Frontend] = []
      for index in 0..<count {
        let frontend = try Frontend(connectingTo: "\(directory)/\(index).sock")
        let offer = try frontend.handshake()
        #expect(offer.queueCount == (index % 2 == 1 ? 1 + index : 3))
        #expect(offer.features.contains(Self.readOnly) == (index % 3 == 1))
        #expect(try frontend.configuration(at: 0, count: 8).word64(at: 0) == UInt64(index + 1) * 8)
        try frontend.setFeatures(offer.features.subtracting(.packedRing))
        let memory = TestMemory.file("vhost-many", size: Int(Rig.memorySize))
        try frontend.setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
        let address = Rig.address(0)
        try frontend.start(
          FrontendQueue(
            index: 0, size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
            usedRing: address.usedRing, kick: eventCounter(), call: eventCounter()))
        frontends.append(frontend)
      }
      kill(program.process.processIdentifier, SIGTERM)
      let result = program.finish()
      #expect(result.status == 0, "\(result.errors)")
      #expect(result.errors.contains("\(directory)/7.sock: a front-end connected: process \(getpid()) of user "))
      #expect(result.errors.contains("20 of 20 disks: engine: "))
      let left = try FileManager.default.contentsOfDirectory(atPath: directory).filter { $0.hasSuffix(".sock") }
      #expect(left.isEmpty)
      for frontend in frontends { #expect(throws: FrontendError.self) { _ = try frontend.features() } }
    }
  }

  /// Read-only disks may share an image.
  @Test func readersShareAnImage() throws {
    try withDirectory { directory in
      try Self.image(directory + "/disk")
      let entries = (0..<2).map {
        ["blk-file": directory + "/disk", "socket-path": "\(directory)/\($0).sock", "read-only": true] as [String: Any]
      }
      try JSONSerialization.data(withJSONObject: entries).write(to: URL(fileURLWithPath: directory + "/list"))
      let program = try Program(["serve", "--disks", directory + "/list"])
      #expect(program.firstLine().contains("2 disks"))
      kill(program.process.processIdentifier, SIGTERM)
      #expect(program.finish().status == 0)
    }
  }

  /// A soft limit is raised; a hard limit that is too low is reported before anything is opened.
  @Test(arguments: [("-Sn 40", nil), ("-n 90", "need 124 open files")] as [(String, String?)])
  func limitOfOpenFiles(limit: String, sentence: String?) throws {
    try withDirectory { directory in
      let entries = try (0..<20).map { index in
        try Self.image("\(directory)/\(index)")
        return ["blk-file": "\(directory)/\(index)", "socket-path": "\(directory)/\(index).sock"]
      }
      try JSONSerialization.data(withJSONObject: entries).write(to: URL(fileURLWithPath: directory + "/list"))
      let program = try Program(["serve", "--disks", directory + "/list"], limit: limit)
      let line = program.firstLine()
      if sentence == nil {
        #expect(line.contains("20 disks"))
        kill(program.process.processIdentifier, SIGTERM)
      }
      let result = program.finish()
      #expect((result.status == 0) == (sentence == nil))
      if let sentence { #expect(result.errors.contains(sentence), "\(result.errors)") }
    }
  }
}
