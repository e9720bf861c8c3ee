/// The command line as users and management software type it.
import Foundation
import TestSupport
import Testing

@testable import VhostUser

@Suite struct CommandLineTests {
  /// The words, the status, and what the first sentence of the error contains.
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
      // Under its own name, and under the usual name of such programs.
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

  /// Unknown options are reported before any other mistake, with what was probably meant.
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

  /// Every option, in one of the commands that have it, with an invalid value.
  @Test func aWrongValueIsNamedAndWhatIsPossibleToo() throws {
    let tool = try Program(["--experimental-dump-help"])
    // More than a pipe can buffer.
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
      (["serve", "--blk-file", "DIR/odd", "--socket-path", "DIR/s"], 66, "a qcow2 image"),
      (["bench", "--blk-file", "DIR/odd"], 66, "a qcow2 image"),
      (["serve", "--blk-file", "DIR/odd", "--socket-path", "DIR/s", "--format", "raw"], 66, "196624 bytes"),
      (["serve", "--disks", "DIR/list"], 66, "entry 1 (/nowhere/i): there is no image"),
      (["run", "--memory", "/nowhere/m", "--blk-file", "DIR/disk"], 66, "/nowhere/m"),
      (["inspect", "/nowhere/m"], 66, "/nowhere/m"),
      (["bench", "--socket-path", "/nowhere/s"], 69, "/nowhere/s"),
    ] as [([String], Int32, String)])
  func eachKindOfMistakeHasItsStatus(words: [String], status: Int32, sentence: String) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      try (Data([0x51, 0x46, 0x49, 0xfb]) + Data(count: 4092)).write(to: URL(fileURLWithPath: directory + "/q"))
      try (Data([0x51, 0x46, 0x49, 0xfb]) + Data(count: 196_620)).write(to: URL(fileURLWithPath: directory + "/odd"))
      try Data(#"[{"blk-file": "/nowhere/i", "socket-path": "\#(directory)/s"}]"#.utf8)
        .write(to: URL(fileURLWithPath: directory + "/list"))
      try Self.check(words.map { $0.replacingOccurrences(of: "DIR", with: directory) }, status, sentence, #_sourceLocation)
    }
  }

  private static let disk = ["serve", "--blk-file", "/nowhere/i", "--socket-path", "s"]

  @Test(
    arguments: [
      (disk + ["--engine", "aio", "--uring", "plain"], "--uring is for io_uring"),
      (disk + ["--engine", "cached", "--direct", "on"], "--engine cached copies out of the page cache, and --direct on"),
      (
        disk + ["--engine", "mmap", "--direct", "on"],
        "--engine mapped copies between the guest and the page cache, and --direct on"
      ),
      (disk + ["--direct", "1", "--engine", "null"], "--engine null reads and writes nothing, and --direct on"),
      (disk + ["--uring", "deferred,plain"], "use 'deferred' or 'plain', which exclude each other"),
      (disk + ["--uring", "sqpoll=1,cooperative"], "use 'sqpoll=1' or 'cooperative'"),
      (disk + ["--uring", "iopoll,no-file,iopoll-hybrid"], "use 'iopoll' or 'iopoll-hybrid'"),
      (disk + ["--uring", "batch=4,whole"], "use 'batch=4' or 'whole'"),
      (disk + ["--uring", "wait=4,wait=4"], "use 'wait=4' once"),
      (disk + ["--poll-us", "5", "--waiting", "busy"], "--poll-us and --waiting say the same"),
      (disk + ["--fd", "3"], "--socket-path and --fd both name the socket"),
      (disk + ["--num-queues", "2", "--queues", "3"], "--num-queues and --queues are two names of one option"),
      (disk + ["--blk-file", "/nowhere/j"], "--blk-file is given twice"),
      (["--blk-file=/nowhere/i", "--socket-path=s", "--blk-file=/nowhere/j"], "--blk-file is given twice"),
      (disk + ["--image", "file:/nowhere/j"], "--blk-file and --image both name the image"),
      (["guest", "--socket-path", "/nowhere/s", "info", "--socket-path", "/nowhere/t"], "--socket-path is given twice"),
      (["ctl", "--control", "/nowhere/s", "list", "--control", "/nowhere/t"], "--control is given twice"),
      (["serve", "--disks", "/nowhere/l", "--socket-path", "s"], "With --disks"),
      (["guest", "info", "--socket-path", "/nowhere/s", "--memory", "/nowhere/m"], ""),
      (["bench", "--socket-path", "/nowhere/s", "--engine", "aio"], "--engine is for a device in this process"),
      (["bench", "--memory", "/nowhere/m", "--num-queues", "2"], "--num-queues is for a device in this process"),
      (["bench", "--socket-path", "/nowhere/s", "--ceiling"], "name one thing to measure"),
    ])
  func optionsThatExcludeEachOtherAreRefused(words: [String], sentence: String) throws {
    try Self.check(words, 64, sentence, #_sourceLocation)
  }

  /// A script's variable that was never set leaves an empty argument, which names no file.
  @Test(arguments: [
    (["serve", "--blk-file", "", "--socket-path", "s"], "--blk-file is empty"),
    (disk + ["--control", ""], "--control is empty"),
    (["--blk-file", "/nowhere/i", "--socket-path", ""], "--socket-path is empty"),
    (["serve", "--disks", ""], "--disks is empty"), (["run", "--memory", "", "--blk-file", "/nowhere/i"], "--memory is empty"),
    (["guest", "--socket-path", "", "info"], "--socket-path is empty"),
    (["ctl", "--control", "", "list"], "--control is empty"),
    (["bench", "--blk-file", ""], "--blk-file is empty"), (["conform", "--exec", ""], "--exec is empty"),
    (["image", "info", ""], "an argument is empty"), (["inspect", ""], "an argument is empty"),
    (["image", "create", "--size", "1M", ""], "an argument is empty"), (["image", "info", "--", ""], "an argument is empty"),
    // If nothing follows the equals sign, the parser takes the next word.
    (["serve", "--blk-file=", "/nowhere/i", "--socket-path", "s"], "--blk-file is empty"),
    (disk + ["--serial=", "x"], "--serial= has no value"),
    (["image", "create", "-b", "", "-F", "raw", "--size", "1G", "/nowhere/i"], "-b is empty"),
  ])
  func whatIsEmptyNamesNothing(words: [String], sentence: String) throws {
    try Self.check(words, 64, sentence, #_sourceLocation)
  }

  /// A disk may have no serial number.
  @Test func aSerialMayBeEmpty() throws {
    try Self.check(Self.disk + ["--serial", ""], 66, "there is no image", #_sourceLocation)
  }

  /// Options that may be repeated.
  @Test(arguments: [
    ["--no-feature", "discard", "--no-feature", "event_idx"],
    ["--inject", "read:eio:count=1", "--inject", "write:eio:count=1"],
    ["--read-only", "--read-only"], ["--uring", "sqpoll=0,iopoll,buffers,no-file,wait=2,batch=4"],
  ])
  func optionsThatMayBeRepeatedAre(words: [String]) throws {
    try Self.check(Self.disk + words, 66, "there is no image", #_sourceLocation)
  }

  /// The image is looked for, so everything before it was accepted.
  @Test(arguments: [
    ["--engine", "io_uring"], ["--engine", "libaio"], ["--engine", "native"], ["--engine", "mmap"], ["--engine", "psync"],
    ["--engine", "threads"], ["--logical-block-size", "4k"], ["--logical-block-size", "4KiB"],
    ["--logical-block-size", "4096"], ["--queues", "2"], ["--num-queues", "2"], ["--direct", "1"],
  ])
  func otherNamesAreTaken(words: [String]) throws {
    let words = ["serve", "--blk-file", "/nowhere/image", "--socket-path", "/nowhere/s"] + words
    try Self.check(words, 66, "there is no image", #_sourceLocation)
  }

  /// A shell passes bytes, which need not be UTF-8.
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

  /// No command uses another name than the one typed: a file with the repaired name is neither opened nor created.
  @Test(arguments: [
    #"serve --image "file:$f" --socket-path "$d/s""#, #"serve --blk-file "$d/disk" --socket-path "$f""#,
    #"serve --disks "$f""#, #"serve --blk-file "$d/disk" --socket-path "$d/s" --control "$f""#,
    #"--socket-path="$f" --blk-file="$d/disk""#, #"run --memory "$f" --create 16M --blk-file "$d/disk""#,
    #"image info "$f""#, #"image check "$f""#, #"image create "$f" --size 1M"#, #"image convert "file:$d/disk" "$f""#,
    #"inspect "$f""#, #"guest --socket-path "$f" info"#, #"ctl --control "$f" list"#,
    #"ctl --control "$d/c" add "blk-file=$f""#,
  ])
  func aNameThatIsNotUTF8IsNoOther(command: String) throws {
    try withDirectory { directory in
      // Files with the repaired names exist.
      for name in ["disk", "\u{fffd}"] { try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/" + name)) }
      let script = "d=$1; f=\"$d/$(printf '\\377')\"; exec \"$0\" \(command)"
      let shell = try Program(["-c", script, Program.path.path, directory], program: URL(fileURLWithPath: "/bin/sh"))
      let result = shell.finish()
      #expect(result.status == 64, "\(result)")
      let sentence = result.errors.split(separator: "\n").first ?? ""
      #expect(sentence.hasPrefix("Error: '") && sentence.contains(#"/\xff' is not UTF-8"#), "\(result.errors)")
      #expect(try FileManager.default.contentsOfDirectory(atPath: directory).sorted() == ["disk", "\u{fffd}"])
    }
  }

  @Test func theControlSocketOfTheEnvironmentIsUTF8() throws {
    let script = #"VMM_BLK_CONTROL=$(printf '/nowhere/\377') exec "$0" ctl list"#
    let result = try Program(["-c", script, Program.path.path], program: URL(fileURLWithPath: "/bin/sh")).finish()
    #expect(result.status == 64 && result.errors.contains("VMM_BLK_CONTROL is not UTF-8"), "\(result)")
  }

  @Test(arguments: [
    (["help", "serv"], "There is no 'serv' in 'vmm-blk'. Did you mean 'serve'?"),
    (["help", "ctl", "ad"], "There is no 'ad' in 'vmm-blk ctl'. Did you mean 'add'?"),
  ])
  func helpForWhatIsNotThereIsAMistake(words: [String], sentence: String) throws {
    try Self.check(words, 64, sentence, #_sourceLocation)
  }

  @Test(arguments: [["help"], ["help", "serve"], ["help", "ctl", "add"], ["help", "--help"]])
  func helpIsGiven(words: [String]) throws {
    let program = try Program(words)
    #expect(String(decoding: program.everything(), as: UTF8.self).contains("USAGE: vmm-blk"))
    #expect(program.finish().status == 0)
  }

  @Test(arguments: [
    (["serve"], "vmm-blk serve --blk-file <path> --socket-path <path>"), (["run"], "--memory <file> --blk-file <path>"),
    (["inspect"], "<file>"), (["guest"], "--memory <file> <verb>"),
    (["guest", "read"], "--socket-path <path> read <offset>"), (["guest", "write"], "write <offset>"),
    (["guest", "copy-in"], "copy-in <file>"), (["guest", "copy-out"], "copy-out <file>"), (["guest", "zero"], "zero <offset>"),
    (["bench"], "--blk-file <path>"), (["image", "create"], "<path> --size <bytes>"),
    (["image", "create"], "<path> -b <path> -F raw|qcow2"), (["image", "rebase"], "<uri> -b <path> -F raw|qcow2"),
    (["image", "snapshot"], "--create|--apply|--delete <snapshot> <path>"),
    (["verify-crash"], "--log <file> --base <file> --check <text>"), (["trace"], "trace --control <path> ["),
    (["ctl", "limit"], "limit [<disk>] <word=rate[/burst],...>"),
  ])
  func usageSaysWhatIsRequired(words: [String], usage: String) throws {
    let help = String(decoding: try Program(words + ["--help"]).everything(), as: UTF8.self)
    #expect(help.contains("USAGE: vmm-blk") && help.contains(usage), "\(help)")
  }

  @Test func everyHelpFitsATerminal() throws {
    for words in try Self.commands() {
      let help = String(decoding: try Program(words + ["--help"]).everything(), as: UTF8.self)
      #expect(help.contains("USAGE: vmm-blk"), "\(words)")
      for line in help.split(separator: "\n") where line.count > 80 {
        Issue.record("\(words): '\(line)' is wider than a terminal of 80 columns")
      }
      // Indentation of the source that must not be in the text.
      for line in help.split(separator: "\n")
      where line.hasPrefix("      ") && line.dropFirst(6).first?.isUppercase == true || line.contains(/[.,:;] {2,}\S/) {
        Issue.record("\(words): '\(line)' begins with spaces or has several in a row")
      }
    }
  }

  /// Both names of every option that has two.
  @Test func twoNamesOfOneOptionAreRefused() throws {
    var pairs = 0
    for (words, arguments) in try Self.options() {
      for argument in arguments where argument["kind"] as? String == "option" && argument["isRepeating"] as? Bool != true {
        let names = (argument["names"] as? [[String: String]] ?? []).map { name in
          (name["kind"] == "long" ? "--" : "-") + (name["name"] ?? "")
        }
        for other in names.dropFirst() {
          let result = try Program(words + [names[0], "1", other, "2"]).finish()
          #expect(
            result.status == 64 && result.errors.contains("two names of one option"), "\(words) \(names): \(result.errors)")
          pairs += 1
        }
      }
    }
    #expect(pairs > 10)
  }

  /// Every command, with its options as the parser lists them.
  private static func options() throws -> [([String], [[String: Any]])] {
    let dump = try JSONSerialization.jsonObject(with: try Program(["--experimental-dump-help"]).everything()) as? [String: Any]
    var all: [([String], [[String: Any]])] = []
    func collect(_ command: [String: Any], _ path: [String]) {
      all.append((path, command["arguments"] as? [[String: Any]] ?? []))
      for child in command["subcommands"] as? [[String: Any]] ?? [] {
        guard let name = child["commandName"] as? String, name != "help" else { continue }
        collect(child, path + [name])
      }
    }
    collect(try #require(dump?["command"] as? [String: Any]), [])
    try #require(all.count > 30)
    return all
  }

  private static func commands() throws -> [[String]] { try options().map(\.0) }

  @Test func everyStatusIsDocumented() throws {
    let help = String(decoding: try Program(["--help"]).everything(), as: UTF8.self)
    for status in [0, 1, 3, 64, 66, 69, 74, 75] { #expect(help.contains("\(status)  "), "\(status)") }
  }
}
