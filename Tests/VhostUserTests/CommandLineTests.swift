/// The command line as users and management software type it.
import Foundation
import TestSupport
import Testing

@testable import VhostUser

@Suite struct CommandLineTests {
  /// Words, status, and what the first sentence says.
  private static func check(_ words: [String], _ status: Int32, _ sentence: String, _ place: SourceLocation) throws {
    let result = try Program(words).finish()
    #expect(result.status == status, "\(words): \(result.errors)", sourceLocation: place)
    let errors = result.errors.split(separator: "\n").filter { $0.hasPrefix("Error: ") }
    #expect(errors.count == 1, "\(words): \(result.errors)", sourceLocation: place)
    #expect(sentence.isEmpty || errors.first?.contains(sentence) == true, "\(words): \(result.errors)", sourceLocation: place)
    #expect(result.output.isEmpty, "\(words)", sourceLocation: place)
  }

  @Test func theVersionIsSaid() throws {
    let result = try Program(["--version"]).finish()
    #expect(result.status == 0)
    #expect(result.output.hasPrefix("vmm-blk "))
  }

  /// "Backend program conventions": with --print-capabilities everything else is ignored.
  @Test(arguments: [
    ["--print-capabilities"], ["serve", "--print-capabilities"], ["--socket-path=/nowhere/s", "--print-capabilities"],
    ["--no-such-option", "--print-capabilities"], ["serve", "--blk-file", "/nowhere", "--print-capabilities", "--fd=3"],
  ])
  func managementSoftwareAsksWithoutAWord(words: [String]) throws {
    let result = try Program(words).finish()
    #expect(result.status == 0, "\(result.errors)")
    let answer = try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any]
    #expect(answer?["type"] as? String == "block")
    #expect(answer?["features"] as? [String] == ["read-only", "blk-file"])
  }

  @Test func managementSoftwareServesWithoutAWord() throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      // By its own name, and by the one that is known for such programs.
      let other = directory + "/vhost-user-blk"
      try FileManager.default.createSymbolicLink(at: URL(fileURLWithPath: other), withDestinationURL: Program.path)
      for program in [Program.path, URL(fileURLWithPath: other)] {
        let words = ["--socket-path=\(directory)/s", "--blk-file=\(directory)/disk"]
        let server = try Program(words, program: program)
        #expect(server.firstLine().hasPrefix("Serving \(directory)/disk on \(directory)/s"))
        // As many queues as front-ends ask for by default.
        #expect(try Frontend(connectingTo: directory + "/s").handshake().queueCount == 16)
        kill(server.process.processIdentifier, SIGTERM)
        #expect(server.finish().status == 0)
      }
      let result = try Program([], program: URL(fileURLWithPath: other)).finish()
      #expect(result.status == 64)
      #expect(result.errors.contains("--blk-file"))
    }
  }

  /// Before anything else that is wrong, and with what was probably meant.
  @Test(arguments: [
    (["serve", "--no-such-option"], "Unknown option '--no-such-option'"),
    (["serve", "--blk-fil", "x"], "Unknown option '--blk-fil'. Did you mean '--blk-file'?"),
    (["serve", "--num-queues", "x", "--scoket-path", "y"], "Unknown option '--scoket-path'. Did you mean '--socket-path'?"),
    (["serve", "--engine=warp", "--thread=2"], "Unknown option '--thread'. Did you mean '--threads'?"),
    (["--versoin"], "Unknown option '--versoin'. Did you mean '--version'?"),
    (["run", "--onc"], "Unknown option '--onc'. Did you mean '--once'?"),
    (["guest", "--sock", "x", "info"], "Unknown option '--sock'. Did you mean '--socket-path'?"),
    (["guest", "info", "--jsn"], "Unknown option '--jsn'. Did you mean '--json'?"),
    (["bench", "--iodpeth", "4"], "Unknown option '--iodpeth'. Did you mean '--iodepth'?"),
    (["bench", "run", "--blk-file", "--nosuch"], "Unknown option '--nosuch'"),
    (["inspect", "-x"], "Unknown option '-x'"),
    (["serv"], "There is no 'serv' in 'vmm-blk'. Did you mean 'serve'?"),
    (["disk"], "There is no 'disk' in 'vmm-blk': use serve, run, ctl, top, trace, image, guest, inspect"),
    (["guest", "--socket-path", "x", "raed"], "There is no 'raed' in 'vmm-blk guest'. Did you mean 'read'?"),
    (["serve", "--\u{1b}[2J\nError: x"], #"Unknown option '--\x1b[2J\nError: x'"#),
  ])
  func whatIsUnknownComesFirst(words: [String], sentence: String) throws {
    try Self.check(words, 64, sentence, #_sourceLocation)
  }

  /// Every option, in one of the commands that have it, with a value that is none.
  @Test func aWrongValueIsNamedAndWhatIsPossibleToo() throws {
    let tool = try Program(["--experimental-dump-help"])
    // More than a pipe holds.
    let text = tool.everything()
    let dump = try #require(try JSONSerialization.jsonObject(with: text) as? [String: Any])
    let root = try #require(dump["command"] as? [String: Any])
    var options: [String: [String]] = [:]
    func collect(_ command: [String: Any], _ path: [String]) {
      for argument in command["arguments"] as? [[String: Any]] ?? [] {
        let value = argument["valueName"] as? String ?? ""
        guard argument["kind"] as? String == "option", !["path", "file", "text", "snapshot"].contains(value) else { continue }
        let names = argument["names"] as? [[String: String]] ?? []
        guard let name = (names.first { $0["kind"] == "long" } ?? names.first)?["name"] else { continue }
        options["--" + name] = path
      }
      for child in command["subcommands"] as? [[String: Any]] ?? [] {
        guard let name = child["commandName"] as? String, name != "help" else { continue }
        collect(child, path + [name])
      }
    }
    collect(root, [])
    try #require(options.count > 30)
    for (name, words) in options {
      let result = try Program(words + [name, "@bad@"]).finish()
      #expect(result.status == 64, "\(words) \(name)")
      let sentence = result.errors.split(separator: "\n").first ?? ""
      #expect(sentence.contains("'@bad@'") && sentence.contains(name), "\(result.errors)")
      let isExplained = sentence.contains("': use ") || sentence.contains("Please provide one of")
      #expect(isExplained, "\(words) \(name): \(result.errors)")
    }
  }

  @Test(
    arguments: [
      (["guest", "info", "--socket-path", "/nowhere/s"], 69, "there is no socket"),
      (["guest", "info", "--memory", "/nowhere/m"], 69, "/nowhere/m"),
      (["guest", "info"], 64, "no disk"),
      (["serve", "--blk-file", "/nowhere/i", "--socket-path", "/nowhere/s"], 66, "there is no image"),
      (["serve", "--disks", "/nowhere/list"], 66, "cannot be read"),
      (["serve", "--blk-file", "DIR/disk", "--socket-path", "/nowhere/s"], 69, "does not exist"),
      (["serve", "--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--num-queues", "0"], 64, "1 to 256"),
      (["serve", "--blk-file", "DIR/disk", "--socket-path", "DIR/s", "--logical-block-size", "1000"], 64, "power of two"),
      (["serve", "--blk-file", "DIR/q", "--socket-path", "DIR/s"], 66, "a qcow2 image"),
      (["serve", "--blk-file", "DIR/q", "--socket-path", "/nowhere/s", "--format", "raw"], 69, "does not exist"),
      (["serve", "--disks", "DIR/list"], 66, "entry 1 (/nowhere/i): there is no image"),
      (["run", "--memory", "/nowhere/m", "--blk-file", "DIR/disk"], 66, "/nowhere/m"),
      (["inspect", "/nowhere/m"], 66, "/nowhere/m"),
      (["bench", "--socket-path", "/nowhere/s"], 69, "/nowhere/s"),
    ] as [([String], Int32, String)])
  func eachKindOfMistakeHasItsStatus(words: [String], status: Int32, sentence: String) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      try (Data([0x51, 0x46, 0x49, 0xfb]) + Data(count: 4092)).write(to: URL(fileURLWithPath: directory + "/q"))
      try Data(#"[{"blk-file": "/nowhere/i", "socket-path": "\#(directory)/s"}]"#.utf8)
        .write(to: URL(fileURLWithPath: directory + "/list"))
      try Self.check(words.map { $0.replacingOccurrences(of: "DIR", with: directory) }, status, sentence, #_sourceLocation)
    }
  }

  @Test(arguments: [
    ["serve", "--blk-file", "/nowhere/i", "--socket-path", "s", "--engine", "aio", "--uring", "plain"],
    ["serve", "--blk-file", "/nowhere/i", "--socket-path", "s", "--engine", "cached", "--direct", "on"],
    ["serve", "--blk-file", "/nowhere/i", "--socket-path", "s", "--poll-us", "5", "--waiting", "busy"],
    ["serve", "--blk-file", "/nowhere/i", "--socket-path", "s", "--fd", "3"],
    ["serve", "--disks", "/nowhere/l", "--socket-path", "s"],
    ["guest", "info", "--socket-path", "/nowhere/s", "--memory", "/nowhere/m"],
    ["bench", "--socket-path", "/nowhere/s", "--engine", "aio"],
    ["bench", "--memory", "/nowhere/m", "--num-queues", "2"],
    ["bench", "--socket-path", "/nowhere/s", "--ceiling"],
  ])
  func optionsThatExcludeEachOtherAreRefused(words: [String]) throws { try Self.check(words, 64, "", #_sourceLocation) }

  /// The image is looked for, so everything before it was understood.
  @Test(arguments: [
    ["--engine", "io_uring"], ["--engine", "libaio"], ["--engine", "native"], ["--engine", "mmap"], ["--engine", "psync"],
    ["--engine", "threads"], ["--logical-block-size", "4k"], ["--logical-block-size", "4KiB"],
    ["--logical-block-size", "4096"], ["--queues", "2"], ["--num-queues", "2"], ["--direct", "1"],
  ])
  func otherNamesAreTaken(words: [String]) throws {
    let words = ["serve", "--blk-file", "/nowhere/image", "--socket-path", "/nowhere/s"] + words
    try Self.check(words, 66, "there is no image", #_sourceLocation)
  }

  /// A shell hands over bytes, which need not be UTF-8.
  @Test(arguments: ["--blk-file \"$d/$(printf '\\377')\"", "--blk-file=\"$d/$(printf '\\377')\""])
  func anImagesNameIsBytes(option: String) throws {
    try withDirectory { directory in
      let script =
        "d=$1; f=\"$d/$(printf '\\377')\"; truncate -s 1M \"$f\" && exec \"$0\" serve \(option) --socket-path \"$d/s\""
      let shell = try Program(["-c", script, Program.path.path, directory], program: URL(fileURLWithPath: "/bin/sh"))
      #expect(shell.firstLine().hasPrefix("Serving \(directory)/\u{fffd} on \(directory)/s"))
      kill(shell.process.processIdentifier, SIGTERM)
      let result = shell.finish()
      #expect(result.status == 0, "\(result.errors)")
    }
  }

  @Test(arguments: [
    (["serve"], "vmm-blk serve --blk-file <path> --socket-path <path>"), (["run"], "--memory <file> --blk-file <path>"),
    (["inspect"], "<file>"), (["guest"], "--memory <file> <verb>"),
    (["guest", "read"], "--socket-path <path> read <offset>"), (["guest", "write"], "write <offset>"),
    (["guest", "copy-in"], "copy-in <file>"), (["guest", "copy-out"], "copy-out <file>"), (["guest", "zero"], "zero <offset>"),
    (["bench"], "--blk-file <path>"),
  ])
  func usageSaysWhatIsRequired(words: [String], usage: String) throws {
    let help = String(decoding: try Program(words + ["--help"]).everything(), as: UTF8.self)
    #expect(help.contains("USAGE: vmm-blk") && help.contains(usage), "\(help)")
    for line in help.split(separator: "\n") where line.count > 80 {
      Issue.record("'\(line)' is wider than a terminal of 80 columns")
    }
  }

  @Test func everyStatusIsDocumented() throws {
    let help = String(decoding: try Program(["--help"]).everything(), as: UTF8.self)
    for status in [0, 1, 64, 66, 69, 74, 75] { #expect(help.contains("\(status)  "), "\(status)") }
  }
}
