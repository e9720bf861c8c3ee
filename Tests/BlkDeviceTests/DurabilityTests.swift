/// When a write has to be on stable storage (virtio 5.2.5.2, 5.2.5.3, 5.2.6.2), for each choice of features.
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct DurabilityTests {
  /// What the driver accepts, what it writes to `writeback`, and whether its writes are stable then.
  typealias Choice = (features: FeatureSet, writeback: UInt8?, isDurable: Bool)
  static let choices: [Choice] = [
    ([], nil, true),
    ([.blockFlush], nil, false),
    ([.blockConfigWCE, .blockFlush], nil, false),
    ([.blockConfigWCE, .blockFlush], 1, false),
    ([.blockConfigWCE, .blockFlush], 0, true),
    ([.blockConfigWCE], nil, true),
    ([.blockConfigWCE], 1, false),
  ]

  /// Clauses blk.op.14 and blk.op.15, and what is left to FLUSH: the first operations that the engine receives for a write,
  /// a discard and a write-zeroes.
  @Test(arguments: choices) func writesAreStableUnlessAFlushCanCommitThem(choice: Choice) throws {
    let (features, writeback, isDurable) = choice
    let script = try Script(completesLater: true)
    let rig = try Rig(
      RigOptions(features: features.union([.version1, .blockDiscard, .blockWriteZeroes]), script: script))
    if let writeback { rig.transport.writeConfiguration(at: 32, [writeback]) }
    try rig.expect(.write(sector: 0, pattern(512)))
    #expect(script.records.map(\.isDurable) == [isDurable])
    try rig.expect(.discard([BlockRange(sector: 8, sectors: 8)]))
    try rig.expect(.writeZeroes([BlockRange(sector: 16, sectors: 8), BlockRange(sector: 32, sectors: 8)]))
    // What fallocate changed is committed by a separate flush, once per request.
    let flush = isDurable ? ["flush"] : []
    #expect(
      script.records.dropFirst().map { "\($0.kind)" } == ["punchHole"] + flush + ["zeroRange", "zeroRange"] + flush)
    // Reads have nothing to commit.
    try rig.expect(.read(sector: 0, bytes: 512))
    #expect(script.records.last?.kind == .read && script.records.last?.isDurable == false)
  }

  /// A write-zeroes that has to be done with writes is as durable as a write.
  @Test func writtenZeroesAreStable() throws {
    let refused = Script.Action.result(-EOPNOTSUPP)
    let script = try Script([refused, refused])
    let rig = try Rig(RigOptions(features: [.version1, .blockWriteZeroes], script: script))
    try rig.expect(.writeZeroes([BlockRange(sector: 16, sectors: 8)]))
    let last = script.records.suffix(2)
    #expect(last.contains { $0.kind == .write && $0.isDurable } || last.last?.kind == .flush)
  }

  /// i.blk.wce.1: the new mode applies to the requests that follow.
  @Test func toggledWhileItRuns() throws {
    let script = try Script()
    let rig = try Rig(RigOptions(script: script))
    var expected: [Bool] = []
    for value: UInt8 in [1, 0, 1, 1, 0, 0, 1] {
      let before = rig.transport.configurationGeneration()
      let changes = rig.transport.readConfiguration(at: 32, count: 1) != [value]
      rig.transport.writeConfiguration(at: 32, [value])
      #expect(rig.transport.readConfiguration(at: 32, count: 1) == [value])
      #expect((rig.transport.configurationGeneration() != before) == changes)
      try rig.expect(.write(sector: 0, pattern(512)))
      expected.append(value == 0)
    }
    #expect(script.records.map(\.isDurable) == expected)
  }

  /// blk.op.16: a FLUSH reaches the medium, and its answer waits for it.
  @Test func flushIsAnsweredWhenTheMediumIsDone() throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(RigOptions(script: script))
    try rig.expect(.write(sector: 0, pattern(512)))
    script.hold()
    #expect(try rig.client.queues[0].submit(.flush) != nil)
    rig.client.queues[0].publish()
    try waitUntil("the engine has the flush") { script.held == 1 }
    usleep(20_000)
    #expect(try rig.client.queues[0].reap() == nil)
    script.release()
    var outcome: BlockOutcome?
    try waitUntil("the flush is answered") {
      outcome = try rig.client.queues[0].reap()
      return outcome != nil
    }
    #expect(outcome?.status == .ok)
    #expect(script.records.map(\.kind) == [.write, .flush])
  }

  /// legacy.blk.6: FLUSH_OUT is FLUSH for a legacy driver, and unsupported for any other.
  @Test func legacyFlushOut() throws {
    let flushOut = BlockRequest(type: BlockRequestType(rawValue: 5))
    let script = try Script()
    let legacy = try Rig(RigOptions(features: [.blockFlush], script: script))
    try legacy.expect(flushOut)
    #expect(script.records.map(\.kind) == [.flush])
    try legacy.expect(.flush)
    #expect(script.records.map(\.kind) == [.flush, .flush])
    let other = try Script()
    try Rig(RigOptions(script: other)).expect(flushOut, .unsupported)
    #expect(other.records.isEmpty)
  }

  // MARK: negotiation

  /// blk.init.1 and blk.init.2, for every image.
  @Test(arguments: [false, true]) func flushIsOffered(isReadOnly: Bool) throws {
    let rig = try Rig(RigOptions(isReadOnly: isReadOnly))
    #expect(rig.device.features.contains([.blockFlush, .blockConfigWCE]))
  }

  /// blk.init.3: with CONFIG_WCE alone the cache starts as writethrough; reset puts the default back.
  @Test func configWCEWithoutFlushStartsAtZero() throws {
    let rig = try Rig(RigOptions(features: [.version1, .blockConfigWCE]))
    #expect(rig.transport.readConfiguration(at: 32, count: 1) == [0])
    // Negotiating the same features again changes nothing.
    rig.transport.writeConfiguration(at: 32, [1])
    rig.device.negotiated([.version1, .blockConfigWCE])
    #expect(rig.transport.readConfiguration(at: 32, count: 1) == [1])
    try rig.transport.reset()
    #expect(rig.transport.readConfiguration(at: 32, count: 1) == [1])
    rig.device.negotiated([.version1, .blockConfigWCE, .blockFlush])
    #expect(rig.transport.readConfiguration(at: 32, count: 1) == [1])
  }

  /// legacy.blk.3 and legacy.blk.4: feature bits and status bits leave a legacy driver's cache mode alone.
  @Test(arguments: [FeatureSet(), [.blockConfigWCE], [.blockFlush], [.blockConfigWCE, .blockFlush]], [UInt8(0), 1])
  func legacyChoicesChangeNothing(features: FeatureSet, writeback: UInt8) throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    let transport = try InProcessTransport(device: BlockDevice(image: image), memory: DriverMemory(size: 1 << 20))
    transport.writeConfiguration(at: 32, [writeback])
    func mode() -> [UInt8] { transport.readConfiguration(at: 32, count: 1) }
    for status: DeviceStatus in [.acknowledge, [.acknowledge, .driver]] {
      try transport.setStatus(status)
      #expect(mode() == [writeback])
    }
    transport.acceptFeatures(features)
    #expect(mode() == [writeback])
    try transport.setStatus([.acknowledge, .driver, .driverOK])
    #expect(transport.status().contains(.driverOK))
    // Only DRIVER_OK without CONFIG_WCE may change it; this device has no reason to.
    #expect(mode() == [writeback])
    try transport.reset()
  }

  /// blk.init.4, and bytes of features that are not offered.
  @Test func paddingIsZero() throws {
    let rig = try Rig()
    let bytes = rig.transport.readConfiguration(at: 0, count: 96)
    #expect(bytes[33] == 0)
    #expect(Array(bytes[57..<96]) == zeroes(39))
    #expect(rig.transport.readConfiguration(at: 96, count: 8) == zeroes(8))
    #expect(rig.transport.readConfiguration(at: .max - 3, count: 8) == zeroes(8))
    #expect(rig.transport.readConfiguration(at: -8, count: 12).count == 12)
  }

  /// A driver may write only `writeback`, and only 0 and 1 are valid (virtio 5.2.4.1).
  @Test(arguments: [
    (offset: 32, bytes: [UInt8(0)], isTaken: true), (32, [1], true), (32, [2], false), (32, [255], false),
    (0, [1], false), (31, [0], false), (33, [0], false), (32, [], false), (32, [0, 0], true), (32, [0, 1], false),
    (95, [0], false), (96, [0], false), (-1, [0], false), (.max, [0], false), (.min, [0], false),
    (32, [UInt8](repeating: 0, count: 200), false),
  ])
  func onlyWritebackIsWritten(offset: Int, bytes: [UInt8], isTaken: Bool) throws {
    let scratch = try Scratch()
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: scratch.image())))
    let before = device.readConfiguration(at: 0, count: 96)
    #expect(device.writeConfiguration(at: offset, bytes) == isTaken)
    var after = device.readConfiguration(at: 0, count: 96)
    if isTaken { #expect(after[32] == bytes[0]) }
    after[32] = before[32]
    #expect(after == before)
  }
}
