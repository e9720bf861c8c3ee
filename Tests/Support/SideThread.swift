/// A part of a test on its own thread.
internal import Foundation
internal import Synchronization

/// Runs a body beside the test. A failed expectation there would be reported without the test's name, so the body throws
/// instead, and `end` rethrows on the test's own thread.
public final class SideThread<Outcome: Sendable>: Sendable {
  private let outcome = Mutex<Result<Outcome, any Error>?>(nil)

  public init(_ body: @escaping @Sendable () throws -> Outcome) {
    Thread.detachNewThread { [self] in
      let result = Result { try body() }
      outcome.withLock { $0 = result }
    }
  }

  /// Whether it has ended, with a result or an error.
  public var isOver: Bool { outcome.withLock { $0 != nil } }

  /// Waits for its end. - Returns: the body's result.
  public func end() throws -> Outcome {
    var result: Result<Outcome, any Error>?
    try wait(until: "a thread of the test has ended") {
      result = outcome.withLock { $0 }
      return result != nil
    }
    guard let result else { preconditionFailure("a thread that has ended has a result") }
    return try result.get()
  }
}
