/// What packed rings change in the protocol: sizes, bases with two halves, records, and the state that one server hands to the
/// next.
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct PackedSessionTests {
  private static let features = Rig.features.union(.packedRing)

  /// Sets everything up until queue 0 runs.
  private static func bringUp(_ rig: inout Rig, size: UInt32 = 100, base: UInt32? = 0x8000_8000) {
    rig.send(.setOwner)
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.setFeatures, Rig.number(features.union(.protocolFeatures).rawValue))
    rig.setMemory()
    rig.send(.setVringSize, Rig.state(0, size))
    if let base { rig.send(.setVringBase, Rig.state(0, base)) }
    rig.send(.setVringAddress, Rig.address(0).bytes)
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    rig.send(.setVringEnable, Rig.state(0, 1))
  }

  /// Both halves if both are given, the lower one for both if only that is, and a new ring if no base is given.
  @Test(
    arguments: [
      (0x8000_8000, 0x8000, 0x8000), (nil, 0x8000, 0x8000), (0x8003_0005, 5, 0x8003), (0x0000_8007, 0x8007, 0x8007),
      (0x0000_0000, 0, 0), (0x0004_8000, 0x8000, 4),
    ] as [(UInt32?, UInt16, UInt16)])
  func basesHaveTwoHalves(base: UInt32?, available: UInt16, used: UInt16) {
    var rig = Rig(features: Self.features)
    Self.bringUp(&rig, base: base)
    #expect(rig.activations.last?.position == QueuePosition(available: available, used: used))
    #expect(rig.activations.last?.kind == QueueKind(isPacked: true, isRecorded: false))
  }

  @Test func baseOfAStoppedRingHasBothHalves() throws {
    var rig = Rig(features: Self.features)
    rig.progress = 0x8015
    Self.bringUp(&rig)
    _ = rig.takeReplies()
    rig.send(.getVringBase, Rig.state(0, 0))
    #expect(rig.takeReplies().first?.payload == VringState(index: 0, number: 0x8015_8015).bytes)
    // It continues there without another SET_VRING_BASE, because the position is not in memory.
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.activations.last?.position == QueuePosition(available: 0x8015, used: 0x8015))
  }

  /// At the beginning of a round in which the wrap counter is 0, a position is all zeroes, but not that of a new ring.
  @Test func ringStoppedAtZeroIsNotANewOne() {
    var rig = Rig(features: Self.features)
    rig.progress = 0
    Self.bringUp(&rig)
    rig.send(.getVringBase, Rig.state(0, 0))
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.activations.last?.position == QueuePosition(available: 0, used: 0))
  }

  @Test func ringThatNeverRanStandsAtTheBeginning() throws {
    var rig = Rig(features: Self.features)
    rig.send(.setFeatures, Rig.number(Self.features.union(.protocolFeatures).rawValue))
    rig.send(.getVringBase, Rig.state(1, 0))
    #expect(rig.takeReplies().first?.payload == VringState(index: 1, number: 0x8000_8000).bytes)
  }

  @Test(arguments: [1, 3, 100, 1000] as [UInt32]) func anySizeWillDo(size: UInt32) {
    var rig = Rig(features: Self.features)
    Self.bringUp(&rig, size: size)
    #expect(rig.activations.last?.configuration.size == UInt16(size))
  }

  @Test func splitRingsKeepTheirRules() {
    var rig = Rig(features: Self.features)
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue))
    rig.send(.setVringSize, Rig.state(0, 100), needReply: true)
    rig.send(.setVringBase, Rig.state(0, 0x8000_8000), needReply: true)
    #expect(rig.takeReplies().map(\.payload) == [NumberPayload.encode(1), NumberPayload.encode(1)])
  }

  @Test func recordsAreThoseOfTheFormat() throws {
    var rig = Rig(features: Self.features)
    rig.send(.setFeatures, Rig.number(Self.features.union(.protocolFeatures).rawValue))
    rig.send(.getInflight, InflightDescription(queueCount: 2, queueSize: 128).bytes)
    let reply = try #require(rig.takeReplies().first)
    let description = try #require(InflightDescription(decoding: reply.payload))
    #expect(description.byteCount == 2 * (32 * 128 + 64) + 64)
    let file = try #require(reply.descriptors.first)
    rig.setRecords((description, file))
    Self.bringUp(&rig)
    #expect(rig.activations.last?.inflight?.isPacked == true)
    #expect(rig.activations.last?.kind == QueueKind(isPacked: true, isRecorded: true))
  }

  /// Records that were mapped for split rings are not used for packed ones.
  @Test func recordsOfTheOtherFormatStartNothing() {
    var rig = Rig(features: Self.features)
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue))
    rig.setRecords(Rig.records())
    Self.bringUp(&rig)
    #expect(rig.activations.isEmpty && rig.takeDeeds().contains("cannot start 0"))
  }
}
