/// A part of a test on a thread of its own.
internal import Foundation
internal import Synchronization

/// Runs a body beside the test. An expectation that fails there would be told without the name of the test, so the body throws
/// instead, and `end` throws that again on the test's own thread.
public final class SideThread<Outcome: Sendable>: Sendable {
  private let outcome = Mutex<Result<Outcome, any Error>?>(nil)

  public init(_ body: @escaping @Sendable () throws -> Outcome) {
    Thread.detachNewThread { [self] in
      let result = Result { try body() }
      outcome.withLock { $0 = result }
    }
  }

  /// It has ended, well or badly.
  public var isOver: Bool { outcome.withLock { $0 != nil } }

  /// Waits for the end. - Returns: what the body returned.
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
