/// Where other threads write down what they finished for a worker: the way in which a helper, a library's thread or another
/// worker wakes it.
internal import Synchronization

/// Results by tag. At most as many as there are tags: who posts was given the tag by the worker and has it once.
final class CompletionBoard: Sendable {
  private let results = Mutex<[(tag: UInt32, result: Int32)]>([])
  private let wake: @Sendable () -> Void

  /// - Parameter wake: makes the worker look at the board; called from any thread.
  init(wake: @escaping @Sendable () -> Void) { self.wake = wake }

  func post(tag: UInt32, result: Int32) {
    let isFirst = results.withLock { list in
      list.append((tag, result))
      return list.count == 1
    }
    if isFirst { wake() }
  }

  /// Takes all results, oldest last, so that `popLast` has the oldest first. - Parameter list: empty; its room is kept.
  func take(into list: inout [(tag: UInt32, result: Int32)]) {
    results.withLock { swap(&$0, &list) }
    list.reverse()
  }
}
