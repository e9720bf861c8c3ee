/// RING_RESET (virtio 2.6.1): one queue is reset and restarted with another size and at another address, while the others run.
/// Over every transport, in both ring formats.
import Foundation
import Testing
import VirtioCore

@testable import GuestDriver

@Suite struct QueueResetTests {
  private func bench(_ setup: Setup) throws -> Bench {
    var options = BenchOptions()
    options.features.insert(.ringReset)
    options.requested = .ringReset
    let bench = try Bench(setup, options)
    try #require(bench.client.session.features.contains(.ringReset))
    return bench
  }

  private func sizes(_ ring: RingFormat) -> [UInt16] { ring == .packed ? [3, 64, 5, 16, 61, 4] : [4, 64, 8, 16, 128, 4] }

  @Test("another size and another place each time", arguments: Setup.real + Setup.modernFaces)
  func sizes(_ setup: Setup) throws {
    let bench = try bench(setup)
    let client = bench.client
    var seen: Set<GuestAddress> = []
    for (round, size) in sizes(setup.ring).enumerated() {
      #expect(try client.resetQueue(0, size: size).isEmpty)
      seen.insert(client.session.queues[0].ring.layout.configuration.descriptorTable)
      #expect(client.session.queues[0].ring.layout.size == size)
      let bytes = [UInt8](repeating: UInt8(round + 1), count: 512)
      for sector: UInt64 in 0..<20 {
        #expect(try client.queues[0].perform(.write(sector: sector, bytes)).status == .ok)
        #expect(try client.queues[1].perform(.read(sector: sector, bytes: 512)).answer == bytes)
      }
    }
    #expect(seen.count > 1)
    // Nothing was written to the old rings.
    #expect(bench.memory.damageOutside() == nil)
    try client.shutDown()
  }

  @Test("requests in flight get no answer, and the other queue is not affected", arguments: Setup.real + Setup.modernFaces)
  func inFlight(_ setup: Setup) throws {
    let bench = try bench(setup)
    let client = bench.client
    var witness = 0
    for round in 0..<30 {
      let count = 1 + round % 4
      for number in 0..<count {
        let bytes = [UInt8](repeating: 7, count: 4096)
        _ = try #require(try client.queues[0].submit(.write(sector: UInt64(8 * number), bytes)))
      }
      // Sometimes the device has not even been kicked.
      if round % 3 > 0 { client.queues[0].publish() }
      for sector: UInt64 in 0..<4 { _ = try client.queues[1].submit(.read(sector: 1024 + sector, bytes: 512)) }
      client.queues[1].publish()
      let lost = try client.resetQueue(0, size: sizes(setup.ring)[round % 6] < 8 ? 16 : nil)
      #expect(lost.count == count)
      try waitUntil("the other queue is answered") {
        while let outcome = try client.queues[1].reap() {
          #expect(outcome.status == .ok)
          witness += 1
        }
        return witness == 4 * (round + 1)
      }
      #expect(try client.queues[0].perform(.read(sector: 2000, bytes: 512)).status == .ok)
    }
    #expect(bench.memory.damageOutside() == nil)
    try client.shutDown()
  }

  @Test("twice, and each queue after the other", arguments: Setup.real)
  func repeated(_ setup: Setup) throws {
    let bench = try bench(setup)
    let client = bench.client
    for _ in 0..<10 {
      for queue in 0..<2 {
        try client.resetQueue(queue)
        try client.resetQueue(queue)
        #expect(try client.queues[queue].perform(.write(sector: 9, [UInt8](repeating: 3, count: 512))).status == .ok)
        #expect(try client.queues[1 - queue].perform(.flush).status == .ok)
      }
    }
    try client.shutDown()
  }

  /// The worker of the other queue is never asked to stop: it is always busy.
  @Test("under load", arguments: Setup.real + Setup.modernFaces)
  func underLoad(_ setup: Setup) throws {
    let bench = try bench(setup)
    let client = bench.client
    let busy = client.queues[1]
    var answered = 0
    var given: UInt64 = 0
    func keepBusy() throws {
      while busy.outstanding < 8, try busy.submit(.read(sector: given % 1024, bytes: 512)) != nil { given += 1 }
      busy.publish()
      while let outcome = try busy.reap() {
        #expect(outcome.status == .ok)
        answered += 1
      }
    }
    for round in 0..<40 {
      try keepBusy()
      try client.resetQueue(0, size: round % 2 == 0 ? 8 : 32)
      try keepBusy()
      _ = try client.queues[0].submit(.write(sector: 1500, [UInt8](repeating: UInt8(round), count: 512)))
      client.queues[0].publish()
    }
    try waitUntil("all requests are answered") {
      while try busy.reap() != nil { answered += 1 }
      return busy.outstanding == 0
    }
    #expect(answered == Int(given))
    try client.shutDown()
  }

  @Test("after a broken ring, a queue reset is not enough: the device has to be reset", arguments: Setup.with(.memoryFile))
  func afterFailure(_ setup: Setup) throws {
    let bench = try bench(setup)
    bench.link([RawDescriptor(address: bench.unmapped.rawValue, length: 16)])
    bench.victim.offer(bench.setup.ring == .split ? 200 : 0)
    bench.kickVictim()
    guard try bench.victimFailed else { return }
    try bench.client.session.transport.resetQueue(0)
    #expect(try bench.transport.status().contains(.needsReset))
    try bench.restart()
    #expect(try bench.client.queues[0].perform(.read(sector: 0, bytes: 512)).status == .ok)
  }

  /// In-flight records of the old ring do not apply to the new one.
  @Test("with in-flight records", arguments: [RingFormat.split, .packed])
  func withRecords(_ ring: RingFormat) throws {
    var options = BenchOptions()
    options.features.insert(.ringReset)
    options.requested = .ringReset
    options.queueSize = 128
    options.reconnection = Reconnection(limit: Patience.limit)
    let bench = try Bench(Setup(device: .vhostUser, ring: ring), options)
    let client = bench.client
    for size in sizes(ring) {
      for sector: UInt64 in 0..<10 {
        #expect(try client.queues[0].perform(.write(sector: sector, [UInt8](repeating: 5, count: 512))).status == .ok)
      }
      try client.resetQueue(0, size: size)
      #expect(try client.queues[0].perform(.read(sector: 3, bytes: 512)).answer == [UInt8](repeating: 5, count: 512))
    }
    try client.shutDown()
  }

  @Test("a device that does not offer it is not asked to do it") func notOffered() throws {
    let bench = try Bench(Setup(device: .inProcess))
    #expect(throws: DriverError.self) { try bench.client.resetQueue(0) }
  }
}
