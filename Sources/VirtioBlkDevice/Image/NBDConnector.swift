/// The thread that makes the connections of a worker over TLS, one after the other.
///
/// It stays for as long as its disk: the library that encrypts keeps something of each thread that used it until the process ends
/// (GnuTLS 3.7: its generator of random numbers, 224 bytes), and memory must not grow with how often a server goes away.
internal import Dispatch
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class NBDConnector: Sendable {
  /// What the thread has of it: one that hangs in an attempt outlives its disk.
  private final class Inbox: Sendable {
    let next = Mutex<NBDAttempt?>(nil)
    /// Something is in it, or nothing more will be.
    let news = DispatchSemaphore(value: 0)
  }

  private let inbox = Inbox()

  /// With the rights of the thread that makes it. - Throws: there can be no thread.
  init() throws(Errno) {
    _ = try SystemThread(name: NBDAttempt.threadName, stackSize: NBDAttempt.stackSize) { [inbox] in
      while true {
        inbox.news.wait()
        guard
          let attempt = inbox.next.withLock({ next in
            defer { next = nil }
            return next
          })
        else { return }
        attempt.run()
      }
    }
  }

  deinit { inbox.news.signal() }

  /// The one before has ended.
  func begin(_ attempt: NBDAttempt) {
    inbox.next.withLock { $0 = attempt }
    inbox.news.signal()
  }
}
