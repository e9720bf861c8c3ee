/// `vmm-blk guest` as a user types it, against `vmm-blk serve`.
import CLinux
import Foundation
import Testing

@Suite(.enabled(if: vmmBlk != nil, "the program vmm-blk was not built beside the tests"))
struct CommandTests {
  /// A served disk of 4 MiB.
  final class Served {
    let directory: String
    private let server: ChildProcess

    init(_ more: String...) throws {
      directory = try unsafe String(
        cString: #require(unsafe mkdtemp(strdup(NSTemporaryDirectory() + "guest-driver-XXXXXX"))))
      #expect(FileManager.default.createFile(atPath: directory + "/disk", contents: Data(count: 4 << 20)))
      server = try ChildProcess(
        [
          #require(vmmBlk), "serve", "--blk-file", directory + "/disk", "--socket-path", directory + "/sock", "--num-queues",
          "2",
          "--serial", "a serial number",
        ] + more, output: directory + "/server")
      // The socket's file exists a moment before the server listens on it; the line comes after that.
      try waitUntil("the server listens") {
        try String(contentsOfFile: directory + "/server", encoding: .utf8).contains("Serving")
      }
    }

    deinit {
      server.end()
      try? FileManager.default.removeItem(atPath: directory)
    }

    /// Runs a verb. - Returns: exit code and everything that was printed.
    func guest(_ arguments: String...) throws -> (code: Int32, output: String) {
      let output = directory + "/output"
      try? FileManager.default.removeItem(atPath: output)
      let child = try ChildProcess(
        [#require(vmmBlk), "guest", "--socket-path", directory + "/sock"] + arguments, output: output)
      let code = child.wait()
      return (code, try String(contentsOfFile: output, encoding: .utf8))
    }
  }

  @Test("info, id, read, write, zero, discard and flush")
  func verbs() throws {
    let served = try Served()
    let info = try served.guest("info")
    #expect(info.code == 0)
    for word in ["4 MiB", "2 queues", "RING_EVENT_IDX", "WRITE_ZEROES", "capacity", "8192 512-byte sectors", "seg_max"] {
      #expect(info.output.contains(word), "\(word) in \(info.output)")
    }
    #expect(info.output.contains("split rings"), "\(info.output)")
    // Packed rings may have any number of entries.
    for (choice, size) in [("packed", "100"), ("any", "128")] {
      let packed = try served.guest("info", "--ring", choice, "--queue-size", size)
      #expect(packed.output.contains("of \(size) entries, packed rings"), "\(packed.output)")
    }
    let json = try served.guest("info", "--json")
    let report = try #require(try JSONSerialization.jsonObject(with: Data(json.output.utf8)) as? [String: Any])
    #expect(report["capacityBytes"] as? Int == 4 << 20)
    #expect(try served.guest("id").output == "a serial number\n")
    #expect(try served.guest("write", "1000", "--text", "across two sectors").code == 0)
    #expect(try served.guest("write", "0x600", "--fill", "0xaa", "--length", "1k").code == 0)
    #expect(
      try served.guest("read", "1000", "24").output == """
        000003e8  61 63 72 6f 73 73 20 74  77 6f 20 73 65 63 74 6f  |across two secto|
        000003f8  72 73 00 00 00 00 00 00                           |rs......|
        00000400

        """)
    #expect(
      try served.guest("read", "3s", "2k").output == """
        00000600  aa aa aa aa aa aa aa aa  aa aa aa aa aa aa aa aa  |................|
        *
        00000a00  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
        *
        00000e00

        """)
    #expect(try served.guest("zero", "3s", "1k").code == 0)
    #expect(try served.guest("read", "3s", "16").output.contains("00 00 00"))
    #expect(try served.guest("discard", "0", "64k").code == 0)
    #expect(try served.guest("flush").code == 0)
  }

  @Test("copy-in and copy-out bring back the same bytes")
  func copies() throws {
    let served = try Served()
    let bytes = Data((0..<1_500_001).map { UInt8(truncatingIfNeeded: $0 &* 2_654_435_761 >> 7) })
    try bytes.write(to: URL(fileURLWithPath: served.directory + "/in"))
    #expect(try served.guest("copy-in", served.directory + "/in", "--offset", "1M").code == 0)
    #expect(
      try served.guest("copy-out", served.directory + "/out", "--offset", "1M", "--length", "1500001").code == 0)
    #expect(try Data(contentsOf: URL(fileURLWithPath: served.directory + "/out")) == bytes)
    let image = try Data(contentsOf: URL(fileURLWithPath: served.directory + "/disk"))
    #expect(image[(1 << 20)..<(1 << 20) + bytes.count] == bytes)
  }

  @Test("copy-out keeps holes")
  func copiesOfHoles() throws {
    let served = try Served()
    let image = served.directory + "/disk"
    var bytes = Data(count: 4 << 20)
    // Data at the end of a block, alone in the middle of blocks, across a chunk's border, and none at the end.
    for (place, count) in [(4090, 12), (100_000, 1), ((1 << 20) - 3, 6), (3 << 20, 4096)] {
      for index in place..<place + count { bytes[index] = 0xa5 }
    }
    let handle = try #require(FileHandle(forWritingAtPath: image))
    try handle.write(contentsOf: bytes)
    try handle.synchronize()
    let copy = served.directory + "/copy"
    // The file's old content is gone.
    try Data(repeating: 1, count: 5 << 20).write(to: URL(fileURLWithPath: copy))
    #expect(try served.guest("copy-out", copy).code == 0)
    #expect(try Data(contentsOf: URL(fileURLWithPath: copy)) == bytes)
    var info = stat()
    #expect(unsafe stat(copy, &info) == 0)
    #expect(info.st_size == 4 << 20)
    #expect(info.st_blocks * 512 < 1 << 20)
    // A part that does not begin at a block, and one that is all holes.
    #expect(try served.guest("copy-out", copy, "--offset", "3073k", "--length", "1023k").code == 0)
    #expect(try Data(contentsOf: URL(fileURLWithPath: copy)) == bytes[(3073 << 10)...])
    #expect(try served.guest("copy-out", copy, "--offset", "2M", "--length", "1000448").code == 0)
    #expect(try Data(contentsOf: URL(fileURLWithPath: copy)) == Data(count: 1_000_448))
    // A target that is not a file gets every byte.
    let pipe = served.directory + "/pipe"
    #expect(unsafe mkfifo(pipe, 0o600) == 0)
    let reader = try ChildProcess(["/bin/sh", "-c", "exec cat \"$0\" > \"$1\"", pipe, copy])
    #expect(try served.guest("copy-out", pipe, "--length", "1M").code == 0)
    #expect(reader.wait() == 0)
    #expect(try Data(contentsOf: URL(fileURLWithPath: copy)) == bytes[..<(1 << 20)])
  }

  @Test("a device whose largest ring is small is driven with that size", arguments: ["4", "16", "64"])
  func smallRings(_ size: String) throws {
    let served = try Served("--queue-size-max", size)
    let info = try served.guest("info")
    #expect(info.code == 0, "\(info.output)")
    #expect(info.output.contains("2 queues of \(size) entries"), "\(info.output)")
    let run = try served.guest("verify", "--bytes", "1M")
    #expect(run.code == 0, "\(run.output)")
    // A larger ring is refused.
    #expect(try served.guest("--queue-size", "128", "info").code != 0)
  }

  @Test("verify prints its seed and what it did")
  func verify() throws {
    let served = try Served()
    let run = try served.guest("verify", "--bytes", "4M", "--seed", "42")
    #expect(run.code == 0, "\(run.output)")
    #expect(run.output.hasPrefix("seed 42\nverified: "))
    let json = try served.guest("verify", "--bytes", "1M", "--json", "--queues", "1", "--queue-size", "4", "--poll")
    let report = try #require(try JSONSerialization.jsonObject(with: Data(json.output.utf8)) as? [String: Any])
    #expect(report["queues"] as? Int == 1)
  }

  @Test(
    "a mistake is one sentence and an exit code",
    arguments: [
      (["read", "8M"], "go past the disk's end"), (["write", "0"], "--text, --hex and --fill"),
      (["zero", "100", "512"], "multiples"),
      (["discard", "0", "1"], "multiples"), (["--queues", "3", "id"], "has 2 queues"),
      (["--queue-size", "3", "id"], "power of two"),
      (["copy-in", "/nowhere/file"], "cannot be opened"), (["copy-out", "/nowhere/file"], "cannot be created"),
      (["verify", "--offset", "8M"], "past the disk's end"), (["verify", "--bytes", "1M", "--seconds", "1"], "not both"),
      (["--memory", "x", "id"], "not both"), (["read", "1x"], "1x"),
    ] as [([String], String)])
  func mistakes(_ arguments: [String], words: String) throws {
    let served = try Served()
    let output = served.directory + "/output"
    let code = try ChildProcess(
      [#require(vmmBlk), "guest", "--socket-path", served.directory + "/sock"] + arguments, output: output
    ).wait()
    let text = try String(contentsOfFile: output, encoding: .utf8)
    #expect(code != 0)
    #expect(text.contains(words), "\(text)")
    let errors = text.split(separator: "\n").filter { $0.hasPrefix("Error: ") }
    #expect(errors.count == 1, "\(text)")
  }

  @Test("a missing device is one sentence, too", arguments: ["--socket-path", "--memory"])
  func nobody(_ option: String) throws {
    let output = NSTemporaryDirectory() + "guest-driver-output-\(UInt64.random(in: 0...UInt64.max))"
    defer { try? FileManager.default.removeItem(atPath: output) }
    let code = try ChildProcess([#require(vmmBlk), "guest", option, "/nowhere/at/all", "info"], output: output).wait()
    #expect(code == 69)
    let text = try String(contentsOfFile: output, encoding: .utf8)
    #expect(text.hasPrefix("Error: ") && text.split(separator: "\n").count == 1, "\(text)")
  }
}
