/// The environment in which the program starts: missing descriptors, signals, a log that nobody
/// reads, no /proc, limits on file sizes, names with terminal escapes.
import CLinux
import Foundation
import GuestDriver
import MemoryFile
import Testing
import VhostUser
import VirtioCore

@Suite(.enabled(if: vmmBlk != nil, "the program vmm-blk was not built beside the tests"))
struct StartupTests {
  /// A folder with an image of 64 KiB that is not all zeroes.
  final class Place {
    static let milliseconds = Int(Patience.limit / .milliseconds(1))
    let directory: String
    let content = (0..<65536).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
    var image: String { directory + "/image" }
    var socket: String { directory + "/socket" }
    var memory: String { directory + "/memory" }
    var log: String { directory + "/log" }

    init() throws {
      directory = try unsafe String(
        cString: #require(unsafe mkdtemp(strdup(NSTemporaryDirectory() + "startup-XXXXXX"))))
      try Data(content).write(to: URL(fileURLWithPath: image))
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    func bytes(_ path: String) throws -> [UInt8] { try Array(Data(contentsOf: URL(fileURLWithPath: path))) }
    func lines() throws -> [String] {
      try String(contentsOfFile: log, encoding: .utf8).split(separator: "\n").map(String.init)
    }

    /// Runs the program to its end. - Returns: its status and its output.
    func run(_ arguments: [String], before: String = "", _ redirections: String = "") throws -> (code: Int32, text: String) {
      let child = try ChildProcess(shell(before, redirections) + arguments, output: log)
      let code = child.wait()
      return (code, try String(contentsOfFile: log, encoding: .utf8))
    }

    /// Arguments that start the program through a shell.
    func shell(_ before: String = "", _ redirections: String) throws -> [String] {
      ["/bin/sh", "-c", before + "exec \"$0\" \"$@\" " + redirections, try #require(vmmBlk)]
    }

    /// Retries until the body succeeds.
    func wait<Value>(_ body: () throws -> Value) throws -> Value {
      let end = ContinuousClock.now + Patience.limit
      while true {
        do { return try body() } catch {
          guard ContinuousClock.now < end else { throw error }
          usleep(5000)
        }
      }
    }

    /// Reads the beginning of the disk as a guest would.
    func readOverSocket() throws {
      let frontend = try wait { try Frontend(connectingTo: socket, patience: Patience.limit) }
      try read(BlockClient(VhostUserTransport(frontend, memory: DriverMemory(anonymous: [(GuestAddress(0), 1 << 20)]))))
    }

    func readOverMemory() throws {
      try read(BlockClient(wait { try MemoryFileTransport(path: memory, milliseconds: Self.milliseconds) }))
    }

    private func read(_ client: consuming BlockClient) throws {
      client.patience = Patience.limit
      let answer = try client.read(at: 0, count: 4096)
      #expect(answer == Array(content[..<4096]))
      try client.shutDown()
    }
  }

  // MARK: Descriptors

  enum Command: CaseIterable, Sendable {
    case serveSync, serveUring, serveMapped, serveThreads, run, copyOut, copyIn
  }

  /// Every subset of standard input, output and error is closed.
  @Test(arguments: 0..<8, Command.allCases)
  func noLogLandsInAFileWhenStandardDescriptorsAreMissing(_ closed: Int, _ command: Command) throws {
    let place = try Place()
    let redirections = ["<&-", ">&-", "2>&-"].enumerated().filter { closed & 1 << $0.offset != 0 }.map(\.element)
    let shell = try place.shell("", redirections.joined(separator: " "))
    func serve(_ engine: String) -> [String] {
      ["serve", "--blk-file", place.image, "--socket-path", place.socket, "--engine", engine, "--log-level", "trace"]
    }
    func runToTheEnd(_ arguments: [String], _ use: () throws -> Void) throws {
      let child = try ChildProcess(arguments)
      try use()
      #expect(child.end() == 0)
    }
    switch command {
    case .serveSync: try runToTheEnd(shell + serve("sync")) { try place.readOverSocket() }
    case .serveUring: try runToTheEnd(shell + serve("auto")) { try place.readOverSocket() }
    case .serveMapped: try runToTheEnd(shell + serve("mapped")) { try place.readOverSocket() }
    case .serveThreads: try runToTheEnd(shell + serve("threads")) { try place.readOverSocket() }
    case .run:
      let arguments = ["run", "--memory", place.memory, "--create", "1M", "--blk-file", place.image]
      try runToTheEnd(shell + arguments) { try place.readOverMemory() }
    case .copyOut, .copyIn:
      let copy = place.directory + "/copy"
      let isOut = command == .copyOut
      if !isOut { try Data(place.content).write(to: URL(fileURLWithPath: copy)) }
      let server = try ChildProcess([#require(vmmBlk)] + serve("sync"))
      _ = try place.wait { try Frontend(connectingTo: place.socket, patience: Patience.limit) }
      let child = try ChildProcess(shell + ["guest", "--socket-path", place.socket, isOut ? "copy-out" : "copy-in", copy])
      #expect(child.wait() == 0)
      #expect(server.end() == 0)
      #expect(try place.bytes(copy) == place.content)
    }
    #expect(try place.bytes(place.image) == place.content)
  }

  // MARK: Signals

  @Test func aServerGoesOnAfterSignalsThatAreNotForIt() throws {
    let place = try Place()
    let server = try ChildProcess([
      #require(vmmBlk), "serve", "--blk-file", place.image, "--socket-path", place.socket,
    ])
    try place.readOverSocket()
    for number in [SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ] { server.send(number) }
    try place.readOverSocket()
    #expect(server.end() == 0)
  }

  // MARK: The log

  @Test(arguments: [false, true]) func aLogThatNobodyReadsHoldsNobodyUp(isFull: Bool) throws {
    let place = try Place()
    var ends: [Int32] = [0, 0]
    try #require(unsafe pipe2(&ends, O_CLOEXEC) == 0)
    var reading: OwnedDescriptor? = OwnedDescriptor(ends[0])
    let writing = OwnedDescriptor(ends[1])
    if isFull {
      let own = unsafe clinux_open("/proc/self/fd/\(writing.rawValue)", O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0)
      try #require(own >= 0)
      let block = [UInt8](repeating: 10, count: 4096)
      while unsafe write(own, block, block.count) > 0 {}
      while unsafe write(own, block, 1) > 0 {}
      close(own)
    } else {
      reading = nil
    }
    let arguments = ["serve", "--blk-file", place.image, "--socket-path", place.socket, "--log-level", "trace"]
    let server = try ChildProcess([#require(vmmBlk)] + arguments, errors: writing.rawValue)
    for _ in 0..<20 { try place.readOverSocket() }
    #expect(server.end() == 0)
    withExtendedLifetime(reading) {}
  }

  @Test func namesStayOneLineAndSayNothingToATerminal() throws {
    let place = try Place()
    let strange = place.directory + "/a\nb\u{1b}[31m\u{202e}"
    let missing = try place.run(["serve", "--blk-file", strange, "--socket-path", place.socket])
    #expect(missing.code != 0)
    #expect(missing.text.split(separator: "\n").count == 1, "\(missing.text.debugDescription)")
    #expect(missing.text.contains("a\\nb\\x1b[31m\\u{202e}"), "\(missing.text.debugDescription)")
    #expect(!missing.text.contains("\u{1b}"))
    try FileManager.default.removeItem(atPath: place.log)

    try FileManager.default.copyItem(atPath: place.image, toPath: strange)
    let socket = place.directory + "/s\n\u{1b}c"
    let list = "[{\"blk-file\": \"\(strange)\", \"socket-path\": \"\(socket)\"}]"
      .replacingOccurrences(of: "\n", with: "\\n").replacingOccurrences(of: "\u{1b}", with: "\\u001b")
    try Data(list.utf8).write(to: URL(fileURLWithPath: place.directory + "/list"))
    let server = try ChildProcess([#require(vmmBlk), "serve", "--disks", place.directory + "/list"], output: place.log)
    struct NotYet: Error {}
    try place.wait {
      // The message about a front-end names the socket; a connection that is closed before the server accepts it causes none.
      let frontend = try Frontend(connectingTo: socket, patience: Patience.limit)
      defer { withExtendedLifetime(frontend) {} }
      try place.wait { if try !place.lines().contains(where: { $0.contains("s\\n\\x1bc") }) { throw NotYet() } }
    }
    #expect(server.end() == 0)
    let lines = try place.lines()
    for line in lines {
      #expect(!line.contains("\u{1b}"))
      // The program's name is there once.
      #expect(line.hasPrefix("Serving ") || line.components(separatedBy: "vmm-blk").count == 2, "\(line)")
      #expect(!line.contains("vmm_blk"), "\(line)")
    }
  }

  // MARK: Missing or limited resources

  /// A command line without /proc; `nil` if the system does not allow one.
  private static let withoutProc: [String]? = {
    let shell = "mount -t tmpfs none /proc && exec \"$0\" \"$@\""
    for words in [["/usr/bin/env", "unshare", "-m"], ["/usr/bin/env", "unshare", "-r", "-m"]] {
      let start = words + ["/bin/sh", "-c", shell]
      if let child = try? ChildProcess(start + ["/usr/bin/env", "test", "!", "-e", "/proc/self"]), child.wait() == 0 {
        return start
      }
    }
    return nil
  }()

  @Test(.enabled(if: withoutProc != nil, "a mount namespace without /proc cannot be created here"))
  func withoutProcEveryCommandDoesItsWorkOrFails() throws {
    let place = try Place()
    let start = try #require(Self.withoutProc) + [#require(vmmBlk)]
    for (words, code, said) in [
      ([], 64 as Int32, "Say what to do"), (["inspect"], 64, "Missing expected argument"), (["bogus"], 64, "bogus"),
      (["help"], 0, "SUBCOMMANDS"), (["serve", "--print-capabilities"], 0, "\"block\""),
    ] as [([String], Int32, String)] {
      let output = place.directory + "/said"
      try? FileManager.default.removeItem(atPath: output)
      #expect(try ChildProcess(start + words, output: output).wait() == code, "\(words)")
      let text = try String(contentsOfFile: output, encoding: .utf8)
      #expect(text.contains(said), "\(words): \(text)")
    }
    let server = try ChildProcess(
      start + ["serve", "--blk-file", place.image, "--socket-path", place.socket], output: place.log)
    try place.readOverSocket()
    #expect(server.end() == 0)
  }

  @Test func aMemoryFileBeyondTheLimitOfFileSizesIsASentence() throws {
    let place = try Place()
    let (code, text) = try place.run(
      ["run", "--memory", place.memory, "--create", "64M", "--blk-file", place.image], before: "ulimit -f 256; ")
    #expect(code != 0 && code < 128)
    #expect(text.contains("ulimit -f"), "\(text)")
    #expect(!FileManager.default.fileExists(atPath: place.memory))
  }

  @Test func aListOfDisksWithoutAnEndIsRefused() throws {
    let place = try Place()
    let (code, text) = try place.run(["serve", "--disks", "/dev/zero"])
    #expect(code != 0 && code < 128)
    #expect(text.contains("/dev/zero"), "\(text)")
  }

  // MARK: Truncated memory files

  @Test(arguments: ["sync", "auto", "mapped"], [true, false])
  func aMemoryFileThatIsCutDoesNotKeepTheDeviceFromItsEnd(engine: String, toTheHeader: Bool) throws {
    let place = try Place()
    let device = try ChildProcess(
      [#require(vmmBlk), "run", "--memory", place.memory, "--create", "1M", "--blk-file", place.image, "--engine", engine],
      output: place.log)
    // A driver that has started its queue and leaves without a reset.
    do {
      let transport = try place.wait { try MemoryFileTransport(path: place.memory, milliseconds: Place.milliseconds) }
      let client = try BlockClient(transport)
      client.patience = Patience.limit
      #expect(try client.read(at: 0, count: 4096) == Array(place.content[..<4096]))
      try #require(unsafe truncate(place.memory, toTheHeader ? 4096 : 0) == 0)
    }
    #expect(device.end() == 0)
  }
}
