/// Where other threads post the results of what they did for a worker: this is how a helper, a library's thread or another
/// worker wakes it.
internal import Glibc
internal import Synchronization

/// Results by tag. At most as many as there are tags: the worker hands out each tag, and it is posted once.
final class CompletionBoard: Sendable {
  private let results = Mutex<[(tag: UInt32, result: Int32)]>([])
  /// Threads inside `post`.
  private let posting = Atomic<Int>(0)
  private let wake: @Sendable () -> Void

  /// - Parameter wake: makes the worker look at the board. It is called from any thread.
  init(wake: @escaping @Sendable () -> Void) { self.wake = wake }

  /// The worker may take the result, and even reuse its tag, before this returns; so `awaitPosters` before releasing the board.
  func post(tag: UInt32, result: Int32) {
    // The lock is released after this, so whoever has taken the result counts this thread.
    posting.add(1, ordering: .relaxed)
    let isFirst = results.withLock { list in
      list.append((tag, result))
      return list.count == 1
    }
    // Not under the lock: the worker runs at once, often on this CPU, and it would find the board locked by a thread that waits
    // for that CPU.
    if isFirst { wake() }
    posting.subtract(1, ordering: .releasing)
  }

  /// Takes all results, oldest last, so that `popLast` has the oldest first. - Parameter list: empty; its capacity is kept.
  func take(into list: inout [(tag: UInt32, result: Int32)]) {
    results.withLock { swap(&$0, &list) }
    list.reverse()
  }

  /// Returns when no thread uses the board any more: it may be released, and what wakes the worker closed. They only have to
  /// signal. Call it when everything that will be posted has been taken.
  func awaitPosters() {
    // Acquiring: what they did happens before whatever the caller does next.
    while posting.load(ordering: .acquiring) > 0 { sched_yield() }
  }
}
