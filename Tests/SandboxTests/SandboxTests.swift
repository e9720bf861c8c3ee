/// What a process can still do after it gave up its rights, as seen from outside: 'sandbox-probe' tries it.
import CLinux
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import Sandbox

@Suite struct SandboxTests {
  private struct Outcome {
    /// The signal that ended it, or `nil`.
    let signal: Int32?
    let status: Int32
    /// What it gave up, and then the error.
    let lines: [Substring]
    var error: Int32? { lines.count > 1 ? Int32(lines[1]) : nil }
  }

  private static func probe(_ mode: SandboxMode, _ role: String, _ deed: String, place: String? = nil) throws -> Outcome {
    let path = Program.path.deletingLastPathComponent().appendingPathComponent("sandbox-probe")
    let program = try Program([mode.rawValue, role, deed] + (place.map { [$0] } ?? []), program: path)
    let (status, output, _) = program.finish()
    let lines = output.split(separator: "\n")
    return program.process.terminationReason == .uncaughtSignal
      ? Outcome(signal: status, status: -1, lines: lines) : Outcome(signal: nil, status: status, lines: lines)
  }

  /// Whether the kernel supports a part of the sandbox.
  private static func has(_ part: String) throws -> Bool {
    try probe(.on, "process", "work").lines.first?.contains(part) == true
  }

  // MARK: System calls

  private static let forbiddenEverywhere = [
    "start-program", "make-process", "make-code", "memory-to-code", "trace", "mount", "read-memory", "module", "tcp", "kill",
    "signal-thread",
  ]

  @Test(
    arguments: forbiddenEverywhere.flatMap { deed in
      [("process", deed)]
        + ThreadRole.allCases.filter { $0 != .cluster || deed != "tcp" }.map { ($0.rawValue, deed) }
    } + [
      // Only the thread that talks to front-ends needs these.
      ("queue", "make-ring"), ("queue", "listen:/tmp/nobody"),
      ("pool", "make-thread"), ("pool", "make-ring"),
      ("doorbell", "make-thread"),
      ("lines", "make-thread"), ("lines", "make-ring"),
    ]) func aForbiddenCallEndsTheProcess(role: String, deed: String) throws
  {
    guard try Self.has("system calls") else { return }
    let outcome = try Self.probe(.on, role, deed)
    #expect(outcome.signal == SIGSYS, "\(outcome)")
  }

  @Test(arguments: ["process"] + ThreadRole.allCases.map(\.rawValue)) func whatIsNeededIsAllowed(role: String) throws {
    let outcome = try Self.probe(.on, role, "work")
    #expect(outcome.signal == nil && outcome.status == 0, "\(outcome)")
  }

  @Test(arguments: [
    ("process", "make-thread"), ("process", "make-ring"), ("queue", "make-thread"), ("cluster", "make-thread"),
    ("process", "signal-itself"),
    ("queue", "signal-itself"), ("lines", "signal-itself"),
  ])
  func threadsAndRingsAreStillMade(role: String, deed: String) throws {
    let outcome = try Self.probe(.on, role, deed)
    #expect(outcome.signal == nil && outcome.status == 0, "\(outcome)")
  }

  /// The C library opens files of the kernel by itself, and copes without them.
  @Test(arguments: ThreadRole.allCases.filter { ![.cluster, .securedQueue].contains($0) })
  func aThreadThatOpensNothingIsRefused(role: ThreadRole) throws {
    for deed in ["read:/proc/sys/vm/overcommit_memory", "read:/etc/passwd", "write:/dev/null"] {
      let outcome = try Self.probe(.on, role.rawValue, deed)
      #expect(outcome.signal == nil && outcome.status == 1 && outcome.error == EACCES, "\(deed): \(outcome)")
    }
  }

  /// It may read what the process may read, and change nothing.
  @Test func aThreadThatReadsCertificatesOnlyReads() throws {
    guard try Self.has("system calls") else { return }
    try withDirectory { directory in
      let file = directory + "/ca-cert.pem"
      try Data("certificate".utf8).write(to: URL(fileURLWithPath: file))
      let role = ThreadRole.securedQueue.rawValue
      #expect(try Self.probe(.on, role, "read:\(file)", place: directory).status == 0)
      #expect(try Self.probe(.on, role, "write:\(file)", place: directory).signal == SIGSYS)
      guard try Self.has("files") else { return }
      let outcome = try Self.probe(.on, role, "read:/etc/passwd", place: directory)
      #expect(outcome.status == 1 && outcome.error == EACCES, "\(outcome)")
    }
  }

  /// What would otherwise end the process is done, and reported in the kernel's log.
  @Test func theLogModeForbidsNothing() throws {
    for deed in ["make-code", "memory-to-code"] {
      let outcome = try Self.probe(.log, "queue", deed)
      #expect(outcome.signal == nil && outcome.status == 0, "\(deed): \(outcome)")
    }
    #expect(try Self.probe(.log, "queue", "read:/etc/passwd").status == 0)
  }

  @Test func offIsOff() throws {
    let outcome = try Self.probe(.off, "queue", "make-code")
    #expect(outcome.signal == nil && outcome.status == 0)
    #expect(outcome.lines.isEmpty)
  }

  /// An unknown name in the lists would make a needed call forbidden.
  @Test func everyCallOfTheListsIsKnown() {
    for call in SystemCalls.ofProcess(internet: true) + ThreadRole.allCases.flatMap({ SystemCalls.of($0) }) {
      #expect(unsafe seccomp_syscall_resolve_name(call.name) != clinux_no_such_call, "\(call.name)")
    }
  }

  /// A thread starts with the process's rights, and cannot get more.
  @Test func noThreadMayMoreThanTheProcess() {
    func names(_ calls: [AllowedCall]) -> Set<String> { Set(calls.map(\.name)) }
    let process = names(SystemCalls.ofProcess(internet: false))
    for role in ThreadRole.allCases { #expect(names(SystemCalls.of(role)).isSubset(of: process), "\(role)") }
    #expect(names(SystemCalls.of(.queue)).isDisjoint(with: ["open", "openat", "socket", "connect", "bind", "execve", "kill"]))
  }

  // MARK: Files

  @Test func onlyWhatIsNamedIsOpened() throws {
    guard try Self.has("files") else { return }
    try withDirectory { directory in
      let (inside, outside) = (directory + "/inside", directory + "/outside")
      for folder in [inside, outside] {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
        try Data("image".utf8).write(to: URL(fileURLWithPath: folder + "/a.img"))
      }
      try FileManager.default.createSymbolicLink(atPath: inside + "/link.img", withDestinationPath: outside + "/a.img")
      let cases: [(deed: String, isAllowed: Bool)] = [
        ("read:\(inside)/a.img", true), ("write:\(inside)/a.img", true), ("listen:\(inside)/s", true),
        ("read:\(outside)/a.img", false), ("write:\(outside)/a.img", false), ("listen:\(outside)/s", false),
        // What counts is where it leads.
        ("write:\(inside)/link.img", false), ("write:\(inside)/../outside/a.img", false),
        ("read:/etc/passwd", false), ("read:/proc/self/status", true), ("write:/proc/self/oom_score_adj", false),
      ]
      for (deed, isAllowed) in cases {
        let outcome = try Self.probe(.on, "process", deed, place: inside)
        #expect(outcome.signal == nil, "\(deed): \(outcome)")
        #expect(outcome.status == (isAllowed ? 0 : 1), "\(deed): \(outcome)")
        if !isAllowed { #expect(outcome.error == EACCES, "\(deed): \(outcome)") }
      }
      #expect(FileManager.default.fileExists(atPath: inside + "/s"))
      #expect(!FileManager.default.fileExists(atPath: outside + "/s"))
    }
  }
}
