/// SUSPEND (virtio 3.4) of a real device, over the interfaces that have it, in both ring formats.
import Foundation
import Testing
import VirtioCore

@testable import GuestDriver

@Suite struct SuspendTests {
  @Test(
    "requests submitted to a suspended device are answered when it is resumed",
    arguments: Setup.with(.memoryFile) + Setup.modernFaces)
  func waits(_ setup: Setup) throws {
    var options = BenchOptions()
    options.features.insert(.suspend)
    options.requested = .suspend
    let bench = try Bench(setup, options)
    let client = bench.client
    try #require(client.session.features.contains(.suspend))
    let live = try bench.transport.status()
    for round in 0..<20 {
      let bytes = [UInt8](repeating: UInt8(round + 1), count: 4096)
      // Some are in flight when it is suspended, and some are submitted afterwards.
      var given = 0
      for number in 0..<round % 4 where try client.queues[0].submit(.write(sector: UInt64(8 * number), bytes)) != nil {
        given += 1
      }
      client.queues[0].publish()
      try bench.transport.setStatus(live.union(.suspend))
      #expect(try bench.transport.status() == live.subtracting(.driverOK).union(.suspend))
      let used = try bench.reapAll(0)
      if try client.queues[0].submit(.write(sector: 64, bytes)) != nil { given += 1 }
      client.queues[0].publish()
      #expect(try bench.reapAll(0) == 0)
      try bench.transport.setStatus(live)
      #expect(try bench.transport.status() == live)
      var answered = used
      try waitUntil("all are answered") {
        answered += try bench.reapAll(0)
        return answered == given
      }
      #expect(try client.queues[1].perform(.read(sector: 64, bytes: 4096)).answer == bytes)
    }
    #expect(bench.memory.damageOutside() == nil)
    try client.shutDown()
  }
}

extension Bench {
  /// The number of answers so far, all of which have to be OK.
  fileprivate func reapAll(_ queue: Int) throws -> Int {
    var count = 0
    while let outcome = try client.queues[queue].reap() {
      #expect(outcome.status == .ok)
      count += 1
    }
    return count
  }
}
