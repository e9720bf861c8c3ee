/// Waiting in tests: one limit, far beyond what a loaded machine needs; a wait that times out fails its test.
internal import Glibc
internal import VirtioCore

/// `Patience.limit` in milliseconds.
public let patientMilliseconds = Int(Patience.limit / .milliseconds(1))

public struct WaitedInVain: Error, CustomStringConvertible {
  public var description: String
  public init(description: String) { self.description = description }
}

/// Polls until the condition holds.
///
/// - Returns: false if it did not within the limit.
public func eventually(_ isSo: () throws -> Bool) rethrows -> Bool {
  let end = ContinuousClock.now + Patience.limit
  while try !isSo() {
    guard .now < end else { return false }
    usleep(1000)
  }
  return true
}

/// Polls until the condition holds.
public func wait(until what: @autoclosure () -> String, _ isSo: () throws -> Bool) throws {
  guard try eventually(isSo) else { throw WaitedInVain(description: "timed out waiting until \(what())") }
}
