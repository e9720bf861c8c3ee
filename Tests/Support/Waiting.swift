/// Waiting in tests: one limit, far beyond what a loaded machine takes, and a wait that fails ends its test.
internal import Glibc
internal import VirtioCore

/// `Patience.limit` in milliseconds.
public let patientMilliseconds = Int(Patience.limit / .milliseconds(1))

public struct WaitedInVain: Error, CustomStringConvertible {
  public var description: String
  public init(description: String) { self.description = description }
}

/// Looks until it is so.
///
/// - Returns: false when that did not come.
public func eventually(_ isSo: () throws -> Bool) rethrows -> Bool {
  let end = ContinuousClock.now + Patience.limit
  while try !isSo() {
    guard .now < end else { return false }
    usleep(1000)
  }
  return true
}

/// Looks until it is so.
public func wait(until what: @autoclosure () -> String, _ isSo: () throws -> Bool) throws {
  guard try eventually(isSo) else { throw WaitedInVain(description: "waited in vain until \(what())") }
}
