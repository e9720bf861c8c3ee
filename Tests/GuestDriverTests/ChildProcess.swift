/// Another program that runs for as long as a test needs it.
import CLinux
import Foundation
import SystemPackage
import VirtioCore

/// Foundation's `Process` waits in a run loop, and a test's thread does not serve one. A child ends with its owner, so
/// that a failed test leaves none behind.
final class ChildProcess {
  private let identifier: pid_t
  /// The exit code, once it has ended; its number may be another process's then.
  private var code: Int32?

  /// - Parameters:
  ///   - arguments: the program's path first.
  ///   - output: a file for standard output, and for standard error.
  ///   - errors: a descriptor for standard error instead; stays the caller's.
  init(_ arguments: [String], output: String = "/dev/null", errors: Int32 = 1) throws {
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o600)
    unsafe posix_spawn_file_actions_adddup2(&actions, errors, 2)
    // The test run's threads block signals, and a child would inherit that.
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { unsafe posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    unsafe sigemptyset(&none)
    unsafe posix_spawnattr_setsigmask(&attributes, &none)
    unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    var words = unsafe arguments.map { unsafe strdup($0) } + [nil]
    defer { for index in unsafe words.indices { unsafe free(words[index]) } }
    var child: pid_t = 0
    let result = unsafe posix_spawn(&child, arguments[0], &actions, &attributes, &words, nil)
    guard result == 0 else { throw Errno(rawValue: result) }
    identifier = child
  }

  deinit { end() }

  /// Waits for it to end, and kills it if it hangs. - Returns: the exit code, or 128 plus the signal's number.
  @discardableResult func wait() -> Int32 {
    if let code { return code }
    var status: Int32 = 0
    let end = ContinuousClock.now + Patience.limit
    var hasEnded: pid_t = 0
    while hasEnded == 0 {
      hasEnded = unsafe waitpid(identifier, &status, WNOHANG)
      if hasEnded < 0, errno == EINTR { hasEnded = 0 }
      if hasEnded == 0 {
        if .now >= end { kill(identifier, SIGKILL) }
        usleep(1000)
      }
    }
    let code = status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f
    self.code = code
    return code
  }

  func send(_ signal: Int32) { kill(identifier, signal) }

  /// Sends SIGTERM, and waits until it has ended.
  @discardableResult func end() -> Int32 {
    if code == nil { kill(identifier, SIGTERM) }
    return wait()
  }
}

/// The program that was built with these tests.
let vmmBlk: String? = {
  let directory = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().path
  let path = directory + "/vmm-blk"
  return FileManager.default.isExecutableFile(atPath: path) ? path : nil
}()
