/// Handles a signal to end while the main thread opens files that may never answer.
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import VirtioCore

/// Signals wait in a descriptor that the loop reads, and there is no loop yet: a list without a writer, or an image whose
/// medium does not answer, would leave the process open to nothing but SIGKILL. So a thread waits for signals meanwhile.
enum StartupWatch {
  /// Milliseconds that the start has to return by itself, which removes the sockets' files.
  private static let patience: Int32 = 2000

  /// Runs the body, which opens files. If a signal comes and the body does not return soon, the process exits as if it were
  /// killed: the kernel releases the images, and the next server replaces the sockets' files.
  ///
  /// - Parameter signals: blocked in all threads. A signal stays pending for the code that reads them after the body.
  /// - Throws: what the body throws.
  static func attend<Result>(_ signals: TerminationSignals, during body: () throws -> Result) throws -> Result {
    let signal = signals.descriptor
    // Without a spare descriptor or thread there is no watch, and what follows fails with its own message.
    guard let over = try? OwnedDescriptor.eventCounter() else { return try body() }
    let watch = try? SystemThread(name: "start-up") {
      guard wait([signal, over.rawValue], -1) == signal, wait([over.rawValue], patience) == nil else { return }
      People.error.write("ending on a signal, before the disks were open: a file does not answer")
      People.error.flush(within: .seconds(1))
      _exit(ExitStatus.success.rawValue)
    }
    defer {
      EventCounter.signal(over.rawValue)
      watch?.join()
    }
    return try body()
  }

  /// - Parameter limit: milliseconds; -1: none.
  /// - Returns: the last of the descriptors that can be read; `nil` when the time is over.
  private static func wait(_ descriptors: [Int32], _ limit: Int32) -> Int32? {
    var entries = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    var count: Int32
    repeat { count = unsafe poll(&entries, nfds_t(entries.count), limit) } while count < 0 && errno == EINTR
    return entries.last { $0.revents != 0 }?.fd
  }
}
