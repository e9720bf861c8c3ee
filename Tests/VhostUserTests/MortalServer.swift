/// A back-end that is killed and comes back, as often as a test wants.
import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

/// Keeps one `vmm-blk serve` running on a socket: whenever it ends, it is started again.
final class MortalServer: Sendable {
  private struct State {
    var process: pid_t?
    var isOver = false
    var deaths = 0
    /// Ends other than by SIGKILL.
    var mishaps: [String] = []
  }

  /// The status of a process that finds its predecessor still in the kernel, with its lock on the image.
  private static let imageIsLocked: Int32 = 66

  let socket: String
  private let arguments: [String]
  private let log: String
  private let state = Mutex(State())
  private let hasEnded = DispatchSemaphore(value: 0)

  /// - Parameters:
  ///   - options: options of `vmm-blk serve`.
  ///   - environment: additional variables of the next process, as `NAME=value`, by how many processes there were before it.
  ///     A process that finds its image locked by its predecessor does not count.
  init(
    _ directory: String, options: [String], environment: @escaping @Sendable (_ incarnation: Int) -> [String] = { _ in [] }
  ) {
    socket = directory + "/disk.sock"
    log = directory + "/log"
    arguments = [Program.path.path, "serve", "--blk-file", directory + "/disk", "--socket-path", socket] + options
    Thread.detachNewThread { [self] in
      keepAlive(environment)
      hasEnded.signal()
    }
  }

  private func keepAlive(_ environment: (Int) -> [String]) {
    let output = unsafe open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
    defer { close(output) }
    var number = 0
    var words = environment(number)
    while true {
      let child: Child
      do {
        // It must not outlive a test run that is killed.
        let command = ["setpriv", "--pdeathsig", "KILL", "--", "env"] + words + arguments
        let started = try state.withLock { state throws -> Child? in
          guard !state.isOver else { return nil }
          let child = try Child(command, standard: [0, output, output])
          state.process = child.identifier
          return child
        }
        guard let started else { return }
        child = started
      } catch {
        state.withLock { $0.mishaps.append("it cannot be started: \(error)") }
        return
      }
      // Not reaped while another thread may be about to kill it: until then its number is not reused.
      var information = unsafe siginfo_t()
      while unsafe waitid(P_PID, id_t(child.identifier), &information, WEXITED | WNOWAIT) < 0 && errno == EINTR {}
      state.withLock { $0.process = nil }
      let code = child.wait()
      state.withLock { state in
        state.deaths += 1
        if code != 128 + SIGKILL, code != Self.imageIsLocked, !state.isOver { state.mishaps.append("it ended with \(code)") }
      }
      guard code != Self.imageIsLocked else { continue }
      number += 1
      words = environment(number)
    }
  }

  /// Sends SIGKILL to the current process.
  func kill() { state.withLock { state in if let process = state.process { Glibc.kill(process, SIGKILL) } } }

  /// Number of processes that have ended.
  var deaths: Int { state.withLock { $0.deaths } }

  /// Ends the last process, and returns what went wrong: nothing, if all is well.
  func end() -> [String] {
    state.withLock { state in
      state.isOver = true
      if let process = state.process { Glibc.kill(process, SIGKILL) }
    }
    hasEnded.wait()
    // For the next waiter.
    hasEnded.signal()
    return state.withLock { $0.mishaps }
  }

  /// The output of all of them.
  var words: String { (try? String(contentsOfFile: log, encoding: .utf8)) ?? "" }
}
