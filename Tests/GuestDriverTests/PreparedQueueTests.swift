/// The fast client does the same as the thorough one.
import Testing
import VirtioCore

@testable import GuestDriver

struct PreparedQueueTests {
  @Test("writes and reads back, full depth, for many rounds", arguments: Setup.allCases, [true, false])
  func roundTrips(_ setup: Setup, indirect: Bool) throws {
    var options = BenchOptions()
    if !indirect { options.features.remove(.indirectDescriptors) }
    options.startsDriver = false
    let bench = try Bench(setup, options)
    let session = try DriverSession(bench.transport, deviceID: 2, options: bench.driverOptions(queues: 1))
    try session.start()
    var queue = try PreparedQueue(session.queues[0], depth: 8, bytes: 4096)
    // The sector of each request in flight, by slot.
    var sectors = Array(repeating: UInt64(0), count: 8)
    for isRead in [false, true] {
      var next: UInt64 = 0
      var answered = 0
      while answered < 200 {
        while next < 200, let slot = queue.nextSlot {
          let sector = next % 200 * 8
          if !isRead { queue.data(of: slot).fill(UInt8(truncatingIfNeeded: sector / 8 &* 37 &+ 1)) }
          guard queue.submit(isRead: isRead, sector: sector) else { break }
          sectors[slot] = sector
          next += 1
        }
        queue.publish()
        while let outcome = try queue.reap() {
          answered += 1
          #expect(outcome.status == .ok && outcome.wasRead == isRead)
          let expected = UInt8(truncatingIfNeeded: sectors[outcome.slot] / 8 &* 37 &+ 1)
          let data = queue.data(of: outcome.slot).bytes
          #expect(data.allSatisfy { $0 == expected })
        }
        if queue.ring.outstanding > 0 {
          let isThere = try queue.ring.waitForUsed(milliseconds: patientMilliseconds)
          try #require(isThere)
        }
      }
      let free = queue.free
      #expect(free == 8)
    }
    try session.shutDown()
  }
}
