/// Runs another program for as long as a test needs it, and waits for things to happen.
import CLinux
import Foundation
import Glibc
import SystemPackage
import Testing
import VirtioCore

final class ChildProgram {
  /// This package's program, built beside the tests.
  static var vmmBlk: String {
    URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().appendingPathComponent("vmm-blk").path
  }

  private let identifier: pid_t
  private let scratch: Scratch
  private var log: String { scratch.path + "/output" }
  private var hasEnded = false

  /// - Parameter arguments: the program's path first.
  init(_ arguments: [String]) throws {
    scratch = try Scratch()
    let log = scratch.path + "/output"
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    unsafe posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0o600)
    unsafe posix_spawn_file_actions_adddup2(&actions, 1, 2)
    // The test run's threads block signals, and a child would inherit that.
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { unsafe posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    unsafe sigemptyset(&none)
    unsafe posix_spawnattr_setsigmask(&attributes, &none)
    // A process group of its own, so that a signal also reaches a tracer's child.
    unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP))
    var words = unsafe arguments.map { unsafe strdup($0) } + [nil]
    defer { for index in unsafe words.indices { unsafe free(words[index]) } }
    var child: pid_t = 0
    let result = unsafe posix_spawn(&child, arguments[0], &actions, &attributes, &words, unsafe Glibc.environ)
    guard result == 0 else { throw Errno(rawValue: result) }
    identifier = child
  }

  deinit { if !hasEnded { _ = end(SIGKILL) } }

  /// Its output so far.
  var output: String { (try? String(contentsOfFile: log, encoding: .utf8)) ?? "" }

  /// Waits for it to end. - Returns: the exit code, or 128 plus the signal's number; and its output.
  func wait() -> (status: Int32, output: String) {
    var status: Int32 = 0
    while unsafe waitpid(identifier, &status, 0) < 0 && errno == EINTR {}
    hasEnded = true
    return (status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f, output)
  }

  func send(_ signal: Int32) { kill(-identifier, signal) }

  /// Sends it a signal that asks it to end, and waits until it has.
  func end(_ signal: Int32 = SIGTERM) -> (status: Int32, output: String) {
    kill(-identifier, signal)
    return wait()
  }

  /// Waits until it listens on the socket.
  func waitForSocket(_ path: String) throws {
    try waitUntil("the program listens: \(output)") {
      FileManager.default.fileExists(atPath: path) && output.contains("Serving")
    }
  }
}

struct TookTooLong: Error, CustomStringConvertible {
  var description: String
}

/// Polls until the condition holds.
func waitUntil(_ what: @autoclosure () -> String, _ isSo: () throws -> Bool) throws {
  let end = ContinuousClock.now + Patience.limit
  while try !isSo() {
    guard .now < end else { throw TookTooLong(description: "timed out waiting until \(what())") }
    usleep(500)
  }
}

/// Runs one body on another thread while a second one runs here; returns when both have ended. The second one has to make
/// the first one end.
func withBackground(_ background: @escaping () throws -> Void, during body: () throws -> Void) throws {
  nonisolated(unsafe) let background = background
  nonisolated(unsafe) var failure: (any Error)?
  let isOver = DispatchSemaphore(value: 0)
  Thread.detachNewThread {
    do { try unsafe background() } catch { unsafe failure = error }
    isOver.signal()
  }
  let result = Result { try body() }
  isOver.wait()
  try result.get()
  if let failure = unsafe failure { throw failure }
}
