/// Where other threads post the results of what they did for a worker: this is how a helper, a library's thread or another
/// worker wakes it.
internal import Synchronization

/// Results by tag. At most as many as there are tags: the worker hands out each tag, and it is posted once.
final class CompletionBoard: Sendable {
  private let results = Mutex<[(tag: UInt32, result: Int32)]>([])
  private let wake: @Sendable () -> Void

  /// - Parameter wake: makes the worker look at the board. It is called from any thread, with the board locked, so it must not
  ///   use the board.
  init(wake: @escaping @Sendable () -> Void) { self.wake = wake }

  /// The board is not touched once the worker can have taken this result: after the last one, the worker may release it, and
  /// close what wakes it.
  func post(tag: UInt32, result: Int32) {
    results.withLock { list in
      list.append((tag, result))
      if list.count == 1 { wake() }
    }
  }

  /// Takes all results, oldest last, so that `popLast` has the oldest first. - Parameter list: empty; its capacity is kept.
  func take(into list: inout [(tag: UInt32, result: Int32)]) {
    results.withLock { swap(&$0, &list) }
    list.reverse()
  }
}
