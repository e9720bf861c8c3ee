/// Cleanup when a signal ends `conform` in the middle of a run.
internal import Conform
internal import Glibc
internal import Sockets
internal import VirtioCore

enum ConformWatch {
  /// From now on, a signal first ends the back-end that was started and removes the scratch files, and then ends the process as
  /// usual.
  ///
  /// Call it before any other thread exists.
  static func begin() throws {
    // An ignored signal, such as SIGINT in a shell's background job, would still be queued while it is blocked.
    let signals = try TerminationSignals([SIGTERM, SIGINT].filter { !isIgnored($0) })
    _ = try SystemThread(name: "signals") {
      var one = pollfd(fd: signals.descriptor, events: Int16(POLLIN), revents: 0)
      var number: Int32?
      repeat {
        _ = unsafe poll(&one, 1, -1)
        number = signals.take()
      } while number == nil
      guard let number else { return }
      Leftovers.end()
      var set = sigset_t()
      unsafe sigemptyset(&set)
      unsafe sigaddset(&set, number)
      unsafe pthread_sigmask(SIG_UNBLOCK, &set, nil)
      raise(number)
      _exit(128 + number)
    }
  }

  private static func isIgnored(_ number: Int32) -> Bool {
    var action = sigaction()
    guard unsafe sigaction(number, nil, &action) == 0 else { return false }
    return unsafe unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self)
  }
}
