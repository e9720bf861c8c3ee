/// NOTIFICATION_DATA (virtio 2.7.23): kicks as register writes with the position of the next chain.
import Testing
import VirtioCore

@testable import GuestDriver

@Suite struct NotificationDataTests {
  private func bench(_ setup: Setup, _ more: FeatureSet = []) throws -> Bench {
    var options = BenchOptions()
    options.features.formUnion(FeatureSet.notificationData.union(more))
    options.requested = .notificationData
    let bench = try Bench(setup, options)
    return bench
  }

  @Test("every kick is such a write", arguments: Setup.with(.memoryFile) + Setup.modernFaces, [false, true])
  func kicks(_ setup: Setup, isBusy: Bool) throws {
    let bench = try bench(setup)
    #expect(bench.client.session.features.contains(.notificationData))
    #expect(bench.client.session.queues.allSatisfy { $0.notify != nil })
    bench.client.depth = isBusy ? 8 : 1
    var verifier = try Verifier(bench.client, VerifyOptions(seed: 38, limit: .bytes(1 << 20)))
    let report = try verifier.run()
    #expect(report.requestCount > 10)
    try bench.client.shutDown()
  }

  /// A queue's position is in the ring; the position in a kick is only a hint.
  @Test("the position in a kick is not trusted", arguments: Setup.with(.memoryFile) + Setup.modernFaces)
  func wrongPositions(_ setup: Setup) throws {
    let bench = try bench(setup)
    let notify = try #require(bench.client.session.queues[0].notify)
    for next in [0, 1, 0x7fff, 0x8000, 0xffff] as [UInt16] {
      notify.write(queue: 0, next: next)
      notify.write(queue: 1, next: next)
      // No such queue.
      notify.write(queue: 2, next: next)
      notify.write(queue: 0xffff, next: next)
      #expect(try bench.client.queues[0].perform(.read(sector: UInt64(next), bytes: 512)).status != .unsupported)
    }
    try bench.expectWitnessWell()
  }

  @Test("a socket has no such kicks", arguments: Setup.with(.vhostUser)) func notOverASocket(_ setup: Setup) throws {
    let bench = try bench(setup)
    #expect(!bench.client.session.offered.contains(.notificationData))
    #expect(bench.client.session.queues.allSatisfy { $0.notify == nil })
  }

  /// The platform's barriers are requested, and the driver's are as strong.
  @Test("ORDER_PLATFORM changes nothing for a driver", arguments: Setup.real) func orderPlatform(_ setup: Setup) throws {
    var options = BenchOptions()
    options.features.insert(.orderPlatform)
    options.requested = .orderPlatform
    let bench = try Bench(setup, options)
    #expect(bench.client.session.features.contains(.orderPlatform))
    var verifier = try Verifier(bench.client, VerifyOptions(seed: 36, limit: .bytes(256 << 10)))
    _ = try verifier.run()
    try bench.client.shutDown()
  }
}
