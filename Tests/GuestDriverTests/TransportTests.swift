/// The same driver over each transport: start-up, data, calls, and another project's back-end.
import CLinux
import Foundation
import Testing
import VhostUser
import VirtioBlkDevice
import VirtioCore
import VirtioRegisters

@testable import GuestDriver

struct TransportTests {
  struct Variant: Sendable, CustomTestStringConvertible {
    var features = BlockFeature.understood
    var queueSize: UInt16 = 64
    var waiting = Waiting.calls
    var logicalBlock = 512
    var testDescription: String { "\(features) size \(queueSize) \(waiting) blocks of \(logicalBlock)" }
  }

  static let variants: [Variant] = [
    Variant(),
    Variant(features: BlockFeature.understood.subtracting(.eventIndex), waiting: .polling),
    Variant(features: BlockFeature.understood.subtracting([.indirectDescriptors, .eventIndex]), queueSize: 4),
    Variant(queueSize: 2, waiting: .polling),
    Variant(queueSize: 1024, logicalBlock: 4096),
  ]

  @Test("the verifier finds no error", arguments: Setup.allCases, variants)
  func verify(_ setup: Setup, variant: Variant) throws { try prove(setup, variant) }

  @Test("the verifier finds no error, with any register interface", arguments: Setup.faces, variants.prefix(2))
  func verifyFaces(_ setup: Setup, variant: Variant) throws { try prove(setup, variant) }

  private func prove(_ setup: Setup, _ variant: Variant) throws {
    var options = BenchOptions()
    options.features = variant.features
    // A packed ring may have any number of entries.
    options.queueSize = setup.ring == .packed && variant.queueSize > 4 ? variant.queueSize - 1 : variant.queueSize
    options.logicalBlock = variant.logicalBlock
    let bench = try Bench(setup, options)
    bench.client.waiting = variant.waiting
    bench.client.depth = 8
    var verifier = try Verifier(bench.client, VerifyOptions(seed: 6, limit: .bytes(512 << 10), largest: 16 << 10))
    let report = try verifier.run()
    #expect(report.bytes >= 512 << 10)
    try bench.client.shutDown()
  }

  @Test("a legacy driver, with the legacy layout", arguments: Setup.split.filter { $0.device != .memoryFile })
  func legacy(_ setup: Setup) throws {
    var options = BenchOptions()
    options.startsDriver = false
    let bench = try Bench(setup, options)
    let client = try BlockClient(
      bench.transport,
      options: DriverOptions(
        features: BlockFeature.understood.subtracting(.version1).union(.anyLayout), queueSize: 128, shape: .legacy()))
    #expect(!client.session.features.contains(.version1))
    var verifier = try Verifier(client, VerifyOptions(seed: 7, limit: .bytes(256 << 10), largest: 16 << 10))
    #expect(try verifier.run().bytes >= 256 << 10)
    try client.shutDown()
  }

  @Test("each interface of a device with two is found and used", arguments: Setup.faces)
  func faces(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let isLegacy = setup.prefersLegacy || !setup.interface.hasModern
    #expect(bench.client.session.features.contains(.version1) != isLegacy)
    #expect(bench.client.session.features.contains(.anyLayout) == isLegacy, "legacy.d.rfb.1")
    #expect(try bench.transport.deviceID() == 2)
    #expect(try bench.transport.queueCount() == 2)
    let size = bench.client.session.queues[1].ring.layout.size
    #expect(size == (isLegacy && setup.interface.isPCI ? 1024 : 16))
    #expect(bench.transport.name.hasPrefix("memory file, "))
    // Shut down, started, and started again without the reset of an orderly shutdown.
    try bench.restart()
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("every sensible subset of features is accepted, and accepted again", arguments: Setup.allFaces)
  func featureSubsets(_ setup: Setup) throws {
    let bench = try Bench(setup)
    var random = SeededRandom(seed: 8)
    for _ in 0..<12 {
      let wanted = FeatureSet(rawValue: random.next()).intersection(BlockFeature.understood).union(.version1)
      for _ in 0..<2 {
        let kind: FeatureSet = setup.ring == .packed ? .packedRing : []
        let client = try BlockClient(bench.transport, options: DriverOptions(features: wanted.union(kind), queueSize: 16))
        // A legacy driver accepts ANY_LAYOUT as well.
        #expect(
          client.session.features.subtracting(.anyLayout)
            == wanted.intersection(client.session.offered).subtracting(.anyLayout).union(kind))
        #expect(try client.queues[0].perform(.read(sector: 0, bytes: 512)).status == .ok)
        try client.shutDown()
      }
    }
  }

  @Test("a feature that is not offered is refused", arguments: Setup.split.filter { $0.device != .synchronous })
  func featureNotOffered(_ setup: Setup) throws {
    let bench = try Bench(setup)
    do {
      let transport = bench.transport
      try transport.reset()
      try transport.setStatus([.acknowledge, .driver])
      let unknown = FeatureSet(bit: 60)
      #expect(try transport.offeredFeatures().isDisjoint(with: unknown))
      var isAccepted = false
      do {
        try transport.acceptFeatures([.version1, unknown])
        try transport.setStatus([.acknowledge, .driver, .featuresOK])
        isAccepted = try transport.status().contains(.featuresOK)
      } catch {
        // vhost-user has no FEATURES_OK, so all it can do is to refuse SET_FEATURES.
        #expect(setup.device == .vhostUser)
      }
      #expect(!isAccepted)
    }
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("no unwanted call", arguments: Setup.allFaces, [false, true])
  func suppressedCalls(_ setup: Setup, eventIndex: Bool) throws {
    var options = BenchOptions()
    if !eventIndex { options.features.remove(.eventIndex) }
    let bench = try Bench(setup, options)
    let queue = bench.client.queues[0]
    queue.ring.disableCalls()
    for round in 0..<50 as Range<UInt64> {
      _ = try #require(try queue.submit(.read(sector: round, bytes: 512)))
      queue.publish()
      try waitUntil("round \(round) is answered") { queue.ring.hasUsed }
      #expect(try #require(try queue.reap()).status == .ok)
    }
    usleep(2000)
    try queue.ring.noteCalls()
    // One may have come when the call was connected.
    #expect(queue.ring.notifications.calls <= 1)
  }

  @Test("with an event index, one call at the requested entry and none before", arguments: Setup.allFaces)
  func eventIndex(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let queue = bench.client.queues[0]
    for _ in 0..<20 {
      try queue.ring.noteCalls()
      let before = queue.ring.notifications.calls
      let start = queue.ring.reapedCount
      let armed = queue.ring.enableCalls(after: 4)
      #expect(armed)
      for place in 0..<5 as Range<UInt64> {
        _ = try #require(try queue.submit(.read(sector: place, bytes: 512)))
        queue.publish()
        // One at a time, so that the batches are known.
        try waitUntil("entry \(place) is used") { queue.ring.usedCount &- start > UInt16(place) }
        if place == 3 {
          usleep(500)
          try queue.ring.noteCalls()
          #expect(queue.ring.notifications.calls - before <= (before == 0 ? 1 : 0), "a call before its entry")
        }
      }
      let reached = try queue.ring.waitForCall(milliseconds: patientMilliseconds)
      #expect(reached, "no call at its entry")
      while try queue.reap() != nil {}
    }
  }

  @Test("calls come whenever they are wanted", arguments: Setup.allFaces, [false, true])
  func sleepingDriver(_ setup: Setup, eventIndex: Bool) throws {
    var options = BenchOptions()
    if !eventIndex { options.features.remove(.eventIndex) }
    let bench = try Bench(setup, options)
    for round in 0..<500 as Range<UInt64> {
      let outcome = try bench.client.queues[Int(round % 2)].perform(.read(sector: round % 64, bytes: 512))
      #expect(outcome.status == .ok)
    }
    for queue in bench.client.queues { #expect(queue.ring.notifications.calls > 0) }
  }

  @Test("a run on a queue that the device has stopped ends with the device's reason", arguments: Setup.allFaces)
  func stoppedQueue(_ setup: Setup) throws {
    let bench = try Bench(setup)
    switch setup.ring {
    case .split: bench.victim.split.availableIndex.storeRelease(1000)
    case .packed:
      bench.victim.packed.offer([RawDescriptor(address: bench.unmapped.rawValue, length: 17, flags: .indirect)], at: .start)
    }
    bench.kickVictim()
    #expect(try bench.victimFailed)
    var verifier = try Verifier(bench.client, VerifyOptions(seed: 10, limit: .bytes(64 << 10)))
    let error = #expect(throws: VerifyError.self) { try verifier.run() }
    guard case .driver(.queueFailed(0), seed: 10) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test("the client's verbs", arguments: Setup.allFaces)
  func verbs(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let client = bench.client
    let bytes = (0..<600_000 / 512 * 512).map { UInt8(truncatingIfNeeded: $0 &* 13 ^ $0 >> 9) }
    try client.write(bytes, at: 4096)
    #expect(try client.read(at: 4096, count: bytes.count) == bytes)
    // Any offset and length.
    #expect(try client.read(at: 5001, count: 777) == Array(bytes[905..<905 + 777]))
    try client.flush()
    try client.writeZeroes(at: 8192, count: 16384)
    #expect(try client.read(at: 8192, count: 16384).allSatisfy { $0 == 0 })
    try client.writeZeroes(at: 8192, count: 4096, unmap: true)
    try client.discard(at: 40960, count: 8192)
    #expect(try client.read(at: 49152, count: 512) == Array(bytes[45056..<45568]))
    #expect(try client.identify() == Array(ReferenceDevice.serial.utf8))
    #expect(throws: DriverError.self) { try client.write([1, 2, 3], at: 0) }
    #expect(throws: DriverError.self) { try client.write(Array(repeating: 0, count: 512), at: 100) }
    #expect(throws: DriverError.self) { _ = try client.read(at: UInt64.max - 10, count: 512) }
    try bench.expectWitnessWell()
  }

  /// Another project's back-end, which does not know this driver.
  @Test("QEMU's storage daemon is proved right", .enabled(if: storageDaemonPath != nil, "qemu-storage-daemon is not installed"))
  func storageDaemon() throws {
    let binary = try #require(storageDaemonPath)
    let directory = try unsafe String(
      cString: #require(unsafe mkdtemp(strdup(NSTemporaryDirectory() + "guest-driver-XXXXXX"))))
    defer { try? FileManager.default.removeItem(atPath: directory) }
    #expect(FileManager.default.createFile(atPath: directory + "/disk", contents: Data(count: 4 << 20)))
    let daemon = try ChildProcess([
      binary, "--blockdev", "driver=file,node-name=f,filename=\(directory)/disk,cache.direct=on", "--export",
      "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=\(directory)/sock,writable=on,num-queues=2",
    ])
    defer { daemon.end() }
    // The socket's file exists a moment before the daemon listens on it.
    try waitUntil("the daemon listens") { (try? Frontend(connectingTo: directory + "/sock")) != nil }
    for features in [BlockFeature.understood, BlockFeature.understood.subtracting([.eventIndex, .indirectDescriptors])] {
      let transport = try VhostUserTransport(path: directory + "/sock", memory: DriverMemory(size: 16 << 20))
      let client = try BlockClient(transport, options: DriverOptions(features: features))
      #expect(client.capacity == 4 << 20)
      #expect(client.queues.count == 2)
      var verifier = try Verifier(client, VerifyOptions(seed: 9, limit: .bytes(4 << 20), cuts: .random))
      #expect(try verifier.run().bytes >= 4 << 20)
      #expect(try client.identify() == Array("vhost_user_blk".utf8))
      try client.shutDown()
    }
  }
}

private let storageDaemonPath = ["/usr/bin/qemu-storage-daemon", "/usr/local/bin/qemu-storage-daemon"]
  .first { FileManager.default.isExecutableFile(atPath: $0) }
