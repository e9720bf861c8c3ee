/// Which rights a server gives up before it serves, and who may connect, as seen from outside.
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import Sockets
@testable import VhostUser

@Suite struct ProtectionTests {
  /// A server of one disk, `a`, without a control socket.
  private final class Server {
    let directory: String
    let program: Program

    /// - Parameters:
    ///   - words: a program that starts the server, and its arguments, before the server's path.
    ///   - size: the image's size.
    init(_ directory: String, _ options: [String] = [], startedBy words: [String] = []) throws {
      self.directory = directory
      let command = ["serve", "--blk-file", directory + "/a.img", "--socket-path", directory + "/a.sock"] + options
      guard let first = words.first else {
        program = try Program(command)
        return
      }
      program = try Program(
        Array(words.dropFirst()) + [Program.path.path] + command, program: URL(fileURLWithPath: first))
    }

    func guest() throws -> BlockClient {
      let transport = try VhostUserTransport(path: directory + "/a.sock", memory: DriverMemory(size: 16 << 20))
      return try BlockClient(
        transport, options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
    }

    func end() -> (status: Int32, errors: String) {
      kill(program.process.processIdentifier, SIGTERM)
      let (status, _, errors) = program.finish()
      return (status, errors)
    }
  }

  /// The lines "name: value" of each thread's status, by the thread's name.
  private static func threads(of process: Int32) throws -> [(name: String, fields: [String: String])] {
    let folder = "/proc/\(process)/task"
    return try FileManager.default.contentsOfDirectory(atPath: folder).compactMap { thread in
      guard let text = try? String(contentsOfFile: "\(folder)/\(thread)/status", encoding: .utf8) else { return nil }
      let schedule = try? String(contentsOfFile: "\(folder)/\(thread)/sched", encoding: .utf8)
      var fields: [String: String] = [:]
      for line in (text + (schedule ?? "")).split(separator: "\n") {
        guard let colon = line.firstIndex(of: ":") else { continue }
        let name = line[..<colon].trimmingCharacters(in: .whitespaces)
        fields[name] = line[line.index(after: colon)...].trimmingCharacters(in: .whitespaces)
      }
      return (fields["Name"] ?? "", fields)
    }
  }

  /// A whole file whose size the kernel does not report.
  private static func text(of path: String) throws -> String {
    let file = try #require(FileHandle(forReadingAtPath: path))
    var data = Data()
    while let part = try file.read(upToCount: 1 << 12), !part.isEmpty { data += part }
    return String(decoding: data, as: UTF8.self)
  }

  private static func verify(_ client: BlockClient) throws {
    var verifier = try Verifier(client, VerifyOptions(seed: 7, limit: .bytes(1 << 20)))
    _ = try verifier.run()
  }

  // MARK: Rights

  @Test(arguments: ["uring", "aio", "sync", "threads", "mapped", "cached"])
  func aServerGivesUpItsRights(engine: String) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      let server = try Server(directory, ["--engine", engine])
      try #require(server.program.firstLine().hasPrefix("Serving "))
      let client = try server.guest()
      try Self.verify(client)
      let threads = try Self.threads(of: server.program.process.processIdentifier)
      #expect(threads.contains { $0.name.hasPrefix("queue") })
      for thread in threads {
        #expect(thread.fields["NoNewPrivs"] == "1", "\(thread.name)")
        #expect(thread.fields["Seccomp"] == "2", "\(thread.name)")
        #expect(thread.fields["CapEff"].map { UInt64($0, radix: 16) } == 0, "\(thread.name)")
        #expect(thread.fields["CapPrm"].map { UInt64($0, radix: 16) } == 0, "\(thread.name)")
        #expect(thread.fields["CapBnd"].map { UInt64($0, radix: 16) } == 0, "\(thread.name)")
        // A queue's own filter, in addition to the process's.
        if thread.name.hasPrefix("queue") {
          #expect(thread.fields["Seccomp_filters"].flatMap { Int($0) } ?? 0 >= 2, "\(thread.name)")
        }
      }
      try client.shutDown()
      let (status, errors) = server.end()
      #expect(status == 0)
      #expect(errors.contains("sandbox: "), "\(errors)")
      #expect(errors.contains("a front-end connected: process \(getpid()) of user \(geteuid())"), "\(errors)")
    }
  }

  private static let hasSlices =
    (try? String(contentsOfFile: "/proc/self/sched", encoding: .utf8))?.contains("se.slice") ?? false

  /// A queue that shares its CPU takes short turns, not the kernel's usual milliseconds.
  @Test(
    .enabled(if: hasSlices, "a kernel from 6.12 on that shows a thread's slice is needed"),
    arguments: [["--engine", "mapped"], ["--engine", "uring"], ["--shared-workers", "1"]])
  func queuesRunForShortSlices(options: [String]) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      let server = try Server(directory, options)
      try #require(server.program.firstLine().hasPrefix("Serving "))
      let client = try server.guest()
      try Self.verify(client)
      let threads = try Self.threads(of: server.program.process.processIdentifier)
        .filter { $0.name.hasPrefix("queue") || $0.name.hasPrefix("shared") }
      #expect(!threads.isEmpty)
      for thread in threads { #expect(thread.fields["se.slice"] == "100000", "\(thread.name)") }
      try client.shutDown()
      #expect(server.end().status == 0)
    }
  }

  /// A core dump contains no guest memory.
  @Test func guestMemoryIsNotDumped() throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      let server = try Server(directory)
      try #require(server.program.firstLine().hasPrefix("Serving "))
      let client = try server.guest()
      let text = try Self.text(of: "/proc/\(server.program.process.processIdentifier)/smaps")
      var (isGuest, found) = (false, 0)
      for line in text.split(separator: "\n") {
        if line.contains("memfd:guest-memory") { isGuest = true }
        guard isGuest, line.hasPrefix("VmFlags:") else { continue }
        (isGuest, found) = (false, found + 1)
        #expect(line.split(separator: " ").contains("dd"), "\(line)")
      }
      #expect(found > 0, "\(text.split(separator: "\n").filter { $0.contains("/") })")
      try client.shutDown()
      #expect(server.end().status == 0)
    }
  }

  /// A server whose disks come and go keeps only the capabilities that its operator thread needs, and queues get none of them.
  @Test func queuesOfAnOperatedServerHaveNoRights() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      let client = try server.guest("a")
      for thread in try Self.threads(of: server.server.process.processIdentifier) where thread.name.hasPrefix("queue") {
        #expect(thread.fields["CapEff"].map { UInt64($0, radix: 16) } == 0)
      }
      #expect((try server.ask("status")["sandbox"] as? [String])?.isEmpty == false)
      try client.shutDown()
      try server.end()
    }
  }

  @Test func withoutASandboxThereIsAWarning() throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      let server = try Server(directory, ["--sandbox", "off"])
      try #require(server.program.firstLine().hasPrefix("Serving "))
      let client = try server.guest()
      try Self.verify(client)
      let threads = try Self.threads(of: server.program.process.processIdentifier)
      #expect(threads.allSatisfy { $0.fields["Seccomp"] == "0" })
      try client.shutDown()
      let (status, errors) = server.end()
      #expect(status == 0)
      #expect(errors.contains("the sandbox is off"), "\(errors)")
    }
  }

  // MARK: Files of added disks

  /// Disks can be added from the folders of the first ones and from those that the command line names, and from nowhere else.
  @Test func addedDisksAreWhereTheyMayBe() throws {
    try withDirectory { elsewhere in
      try Operated.image(elsewhere, "b")
      try Operated.image(elsewhere, "c")
      try withDirectory { directory in
        let server = try Operated(directory, ["a"])
        guard (try server.ask("status")["sandbox"] as? [String])?.contains("files") == true else { return }
        try Operated.image(directory, "d")
        #expect(try server.ask("add", #","entry":\#(Operated.entry(directory, "d"))"#)["error"] == nil)
        let refused = try server.ask("add", #","entry":\#(Operated.entry(elsewhere, "b"))"#)
        let sentence = try #require(refused["error"] as? String)
        #expect(sentence.contains("--allow-path") && sentence.contains(directory), "\(sentence)")
        // A link out of the folder is refused, too.
        try FileManager.default.createSymbolicLink(
          atPath: directory + "/e.img", withDestinationPath: elsewhere + "/c.img")
        let link = try server.ask("add", #","entry":\#(Operated.entry(directory, "e"))"#)
        #expect((link["error"] as? String)?.contains("--allow-path") == true, "\(link)")
        let client = try server.guest("d")
        try Self.verify(client)
        try client.shutDown()
        try server.end()
      }
      try withDirectory { directory in
        let server = try Operated(directory, ["a"], ["--allow-path", elsewhere])
        #expect(try server.ask("add", #","entry":\#(Operated.entry(elsewhere, "b"))"#)["error"] == nil)
        let transport = try VhostUserTransport(path: elsewhere + "/b.sock", memory: DriverMemory(size: 16 << 20))
        let client = try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
        try Self.verify(client)
        try client.shutDown()
        #expect(try server.ask("remove", disk: elsewhere + "/b.sock")["error"] == nil)
        #expect(!FileManager.default.fileExists(atPath: elsewhere + "/b.sock"))
        try server.end()
      }
    }
  }

  /// A sandboxed server opens the zone state files of disks, and cannot create any.
  @Test func addedDisksHaveTheStatesOfTheirZones() throws {
    try withDirectory { directory in
      let zones = "host-managed,zone-size=256K"
      let server = try Operated(directory, ["b"])
      guard (try server.ask("status")["sandbox"] as? [String])?.contains("files") == true else { return }
      try Operated.image(directory, "a")
      let entry = #","entry":\#(Operated.entry(directory, "a", #","zoned":"\#(zones)""#))"#
      let refused = try #require(try server.ask("add", entry)["error"] as? String)
      #expect(refused.contains("a.img.zones") && refused.contains("in its sandbox cannot create files"), "\(refused)")
      #expect(!FileManager.default.fileExists(atPath: directory + "/a.img.zones"))
      // What the error suggests works.
      let other = try Server(directory, ["--zoned", zones])
      try #require(other.program.firstLine().hasPrefix("Serving "))
      #expect(other.end().status == 0)
      #expect(try server.ask("add", entry)["error"] == nil)
      let client = try server.guest("a")
      #expect(try client.zones().count == 16)
      let outcome = try client.queues[0].perform(.append(zone: 512, [UInt8](repeating: 7, count: 512)))
      #expect(outcome.status == .ok && BlockClient.appendedSector(outcome) == 512)
      try client.shutDown()
      try server.end()
    }
  }

  // MARK: Sockets

  /// Whatever the umask is, and without a moment in which the mode permits more.
  @Test(arguments: [
    (umask: "022", options: ["--socket-mode", "0660"], mode: 0o660), ("077", ["--socket-mode", "666"], 0o666),
    ("000", ["--socket-mode", "600"], 0o600), ("027", [], 0o750), ("000", ["--socket-group", "GROUP"], 0o770),
    ("027", ["--socket-group", "GROUP"], 0o750), ("077", ["--socket-group", "GROUP", "--socket-mode", "620"], 0o620),
  ])
  func aSocketHasTheModeThatWasAskedFor(umask: String, options: [String], mode: UInt32) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      // Root may give a socket to any group, other users to their own.
      let group = geteuid() == 0 ? 4242 : getegid()
      let server = try Server(
        directory, options.map { $0 == "GROUP" ? "\(group)" : $0 },
        startedBy: ["/bin/sh", "-c", "umask \(umask) && exec \"$0\" \"$@\""])
      try #require(server.program.firstLine().hasPrefix("Serving "))
      var info = stat()
      #expect(unsafe lstat(directory + "/a.sock", &info) == 0)
      #expect(info.st_mode & 0o777 == mode)
      #expect(info.st_gid == (options.contains("GROUP") ? group : getegid()))
      #expect(server.end().status == 0)
    }
  }

  @Test(arguments: [
    (["--socket-mode", "0888"], "--socket-mode"), (["--socket-mode", "rw"], "--socket-mode"),
    (["--socket-mode", "1777"], "--socket-mode"), (["--socket-group", "no such group"], "--socket-group"),
    (["--sandbox", "maybe"], "--sandbox"), (["--allow-path", "/"], "--allow-path"),
    (["--control", "DIR/c", "--allow-path", "DIR/none"], "--allow-path"),
  ])
  func mistakesAreRefused(options: [String], word: String) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      let server = try Server(directory, options.map { $0.replacingOccurrences(of: "DIR", with: directory) })
      let (status, _, errors) = server.program.finish()
      #expect(status == 64)
      #expect(errors.contains(word), "\(errors)")
      #expect(!FileManager.default.fileExists(atPath: directory + "/a.sock"))
    }
  }

  // MARK: Unprivileged from the start

  private static let isRoot = geteuid() == 0

  private static func has(_ program: String) -> Bool { FileManager.default.isExecutableFile(atPath: "/usr/bin/" + program) }

  private static let nobody = [
    "/usr/bin/setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
    "--no-new-privs",
  ]

  /// An unprivileged user without capabilities, with little locked memory, and with write access only to the disk's folder.
  @Test(
    .enabled(if: isRoot && has("setpriv") && has("prlimit") && has("unshare"), "needs root and util-linux"),
    arguments: [
      ("auto", false), ("mapped", false), ("aio", false), ("threads", true), ("auto", true),
    ])
  func aUserWithoutRightsServes(engine: String, readOnlyRoot: Bool) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      #expect(unsafe chown(directory, 65534, 65534) == 0 && chown(directory + "/a.img", 65534, 65534) == 0)
      let little = Self.nobody + ["/usr/bin/prlimit", "--memlock=65536:65536", "--nofile=256:256"]
      let readOnly = [
        "/usr/bin/unshare", "--mount", "/bin/sh", "-c",
        "mount --bind \(directory) \(directory) && mount -o remount,bind,ro / && exec \"$0\" \"$@\"",
      ]
      let server = try Server(
        directory, ["--engine", engine, "--num-queues", "2"], startedBy: readOnlyRoot ? readOnly + little : little)
      let line = server.program.firstLine()
      guard line.hasPrefix("Serving ") else {
        let errors = server.program.finish().errors
        // A machine that does not allow the remount, or where that user cannot reach the program, cannot run this set-up.
        if errors.contains("mount:") || errors.contains("unshare:") || errors.contains("execute") { return }
        Issue.record("\(errors)")
        return
      }
      let client = try server.guest()
      try Self.verify(client)
      try client.shutDown()
      let (status, errors) = server.end()
      #expect(status == 0, "\(errors)")
      #expect(!FileManager.default.fileExists(atPath: directory + "/a.sock"))
    }
  }

  /// On some kernels rings count against the limit of locked memory: the disk is served without them, and the remedy is named.
  @Test(.enabled(if: isRoot && has("setpriv") && has("prlimit"), "needs root and util-linux"), arguments: ["auto", "uring"])
  func memoryThatCannotBeLockedIsNamed(engine: String) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      #expect(unsafe chown(directory, 65534, 65534) == 0 && chown(directory + "/a.img", 65534, 65534) == 0)
      let server = try Server(
        directory, ["--engine", engine, "--direct", "off"],
        startedBy: Self.nobody + ["/usr/bin/prlimit", "--memlock=4096:4096"])
      let serves = server.program.firstLine().hasPrefix("Serving ")
      let errors = serves ? server.end().errors : server.program.finish().errors
      if errors.contains("execute") { return }
      #expect(serves || engine == "uring", "\(errors)")
      // A kernel that does not count them causes no message.
      guard errors.contains("io_uring cannot be used here") else { return }
      #expect(errors.contains("locked memory") && errors.contains("ulimit -l"), "\(errors)")
    }
  }

  /// A missing permission is reported in one sentence.
  @Test(
    .enabled(if: isRoot && has("setpriv"), "needs root and util-linux"),
    arguments: [
      (image: 0o600, folder: 0o777, words: "cannot be opened for writing"), (0o666, 0o755, "not writable"),
    ])
  func whatIsMissingIsOneSentence(image: mode_t, folder: mode_t, words: String) throws {
    try withDirectory { directory in
      try Operated.image(directory, "a")
      #expect(unsafe chmod(directory + "/a.img", image) == 0 && chmod(directory, folder) == 0)
      let server = try Server(directory, startedBy: Self.nobody)
      let (status, _, errors) = server.program.finish()
      if errors.contains("execute") { return }
      #expect(status != 0)
      #expect(errors.split(separator: "\n").filter { $0.hasPrefix("Error: ") }.count == 1, "\(errors)")
      #expect(errors.contains(words), "\(errors)")
    }
  }
}
