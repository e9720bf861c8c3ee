/// The answer to one message: the sender sleeps until the worker has given it.
internal import Dispatch
internal import Synchronization

final class Reply<Value: Sendable>: Sendable {
  private let value = Mutex<Value?>(nil)
  private let isThere = DispatchSemaphore(value: 0)

  func give(_ answer: Value) {
    value.withLock { $0 = answer }
    isThere.signal()
  }

  /// Waits for the answer; called once.
  func wait() -> Value {
    isThere.wait()
    guard let answer = value.withLock({ $0 }) else { preconditionFailure("a reply was signalled before it was given") }
    return answer
  }
}
