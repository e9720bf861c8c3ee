/// Waiting in tests: one limit, far beyond what a loaded machine needs; a wait that times out fails its test.
import CLinux
import Glibc
import VirtioCore

/// `Patience.limit` in milliseconds.
let patientMilliseconds = Int(Patience.limit / .milliseconds(1))

struct WaitedInVain: Error, CustomStringConvertible {
  var description: String
}

/// Polls until the condition holds.
func waitUntil(_ what: @autoclosure () -> String, _ isSo: () throws -> Bool) throws {
  let end = ContinuousClock.now + Patience.limit
  while try !isSo() {
    guard .now < end else { throw WaitedInVain(description: "timed out waiting until \(what())") }
    usleep(200)
  }
}
