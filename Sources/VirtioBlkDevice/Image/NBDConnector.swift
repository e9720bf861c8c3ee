/// The thread that makes a worker's connections over TLS, one after the other.
///
/// It lives as long as its disk: the TLS library keeps some memory for each thread that used it until the process ends (GnuTLS
/// 3.7: its random number generator, 224 bytes), and memory must not grow each time that a server goes away.
internal import Dispatch
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class NBDConnector: Sendable {
  /// The part that the thread owns: a thread that hangs in an attempt outlives its disk.
  private final class Inbox: Sendable {
    let next = Mutex<NBDAttempt?>(nil)
    /// There is a new attempt, or there will be no more.
    let news = DispatchSemaphore(value: 0)
  }

  private let inbox = Inbox()

  /// The thread has the rights of the thread that makes it. - Throws: if no thread can be made.
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

  /// To be called when the previous attempt has ended.
  func begin(_ attempt: NBDAttempt) {
    inbox.next.withLock { $0 = attempt }
    inbox.news.signal()
  }
}
