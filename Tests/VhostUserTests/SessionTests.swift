/// The rules of the protocol, one by one.
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct ReplyTests {
  @Test(arguments: [
    (FrontendRequest.getFeatures, Rig.features.union([.protocolFeatures, .logAll]).rawValue),
    (.getProtocolFeatures, ProtocolFeatures.served.rawValue), (.getQueueCount, 2), (.getMaximumMemorySlots, 509),
    (.getStatus, 0),
  ])
  func numbers(request: FrontendRequest, value: UInt64) {
    var rig = Rig()
    rig.send(request)
    let header: [UInt8] = [UInt8(request.rawValue), 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0]
    #expect(rig.replies.map(\.bytes) == [header + Rig.number(value)])
  }

  /// Only features that work are offered.
  @Test func offeredProtocolFeatures() {
    let bits = [0, 1, 3, 5, 9, 12, 13, 15, 16]
    #expect(ProtocolFeatures.served == bits.reduce(into: []) { $0.insert(ProtocolFeatures(bit: $1)) })
  }

  @Test func baseOfAStoppedQueueByteForByte() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeReplies()
    rig.progress = 0x1234
    rig.send(.getVringBase, Rig.state(1, 0), needReply: true)
    #expect(
      rig.replies.map(\.bytes) == [[11, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0x34, 0x12, 0, 0]])
  }

  /// Without REPLY_ACK need_reply is ignored; with it, a message without a reply of its own gets exactly a zero.
  @Test func acknowledgementNeedsBothBits() {
    var rig = Rig()
    rig.send(.setOwner, needReply: true)
    #expect(rig.takeReplies().isEmpty)
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.replyAck.rawValue), needReply: true)
    #expect(rig.takeReplies().map(\.bytes) == [[16, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    rig.send(.setOwner)
    #expect(rig.takeReplies().isEmpty)
    rig.send(.setOwner, needReply: true)
    #expect(rig.takeReplies().map(\.bytes) == [[3, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
  }
}

@Suite struct RingLifeTests {
  /// Row 32 of the bad-input list: nothing is taken before the ring is enabled, and nothing is lost.
  @Test func kickBeforeEnableStartsAtEnable() {
    var rig = Rig()
    rig.bringUp(queues: 0)
    rig.send(.setVringSize, Rig.state(0, 16))
    rig.send(.setVringAddress, Rig.address(0).bytes)
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.activations.isEmpty)
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.activations.map(\.queue) == [0])
    #expect(rig.activations[0].configuration.size == 16)
  }

  @Test func aRingWithoutKickDescriptorIsPolled() {
    var rig = Rig()
    rig.bringUp(queues: 0)
    rig.send(.setVringSize, Rig.state(0, 16))
    rig.send(.setVringAddress, Rig.address(0).bytes)
    rig.send(.setVringCall, Rig.word(0, hasDescriptor: false))
    rig.send(.setVringEnable, Rig.state(0, 1))
    rig.send(.setVringKick, Rig.word(0, hasDescriptor: false))
    #expect(rig.activations.count == 1)
    guard case .none = rig.activations[0].kick, case .none = rig.activations[0].call else {
      Issue.record("there is a kick or call that nobody sent")
      return
    }
  }

  /// Ring addresses are in the front-end's address space; the device gets guest addresses.
  @Test func addressesAreTranslated() {
    var rig = Rig()
    rig.bringUp(queues: 0)
    rig.setMemory([Rig.region(0x8000_0000)])
    rig.send(.setVringSize, Rig.state(1, 16))
    rig.send(.setVringAddress, Rig.address(1).bytes)
    rig.send(.setVringKick, Rig.word(1), [eventCounter()])
    rig.send(.setVringEnable, Rig.state(1, 1))
    #expect(
      rig.activations.map(\.configuration) == [
        QueueConfiguration(
          size: 16, descriptorTable: GuestAddress(0x8001_0000), availableRing: GuestAddress(0x8001_4000),
          usedRing: GuestAddress(0x8001_8000))
      ])
  }

  /// A new call descriptor is signalled once: by the device if it runs the ring, otherwise by the session.
  @Test func aNewCallIsSignalledOnce() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    rig.send(.setVringCall, Rig.word(0), [eventCounter()])
    #expect(rig.takeDeeds() == ["call 0"])
    rig.send(.setVringError, Rig.word(0), [eventCounter()])
    #expect(rig.takeDeeds() == ["err 0"])
    rig.send(.getVringBase, Rig.state(0, 0))
    _ = rig.takeDeeds()
    let call = eventCounter()
    rig.send(.setVringCall, Rig.word(0), [call])
    #expect(rig.takeDeeds() == ["signal"])
    #expect(EventCounter.drain(call.rawValue) == 1)
  }

  @Test func stopForgetsKickAndCall() {
    var rig = Rig()
    rig.bringUp()
    rig.send(.getVringBase, Rig.state(0, 0))
    _ = rig.takeDeeds()
    // Still enabled, but stopped: only a kick starts it again, at its position.
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.takeDeeds().isEmpty)
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.takeDeeds() == ["start 0 at 5"])
    guard case .none? = rig.activations.last?.call else {
      Issue.record("a call descriptor outlived the stop")
      return
    }
  }

  /// A second kick on a running ring replaces the descriptor and loses nothing.
  @Test func kickOnARunningRingStartsItAnewWhereItStands() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.takeDeeds() == ["stop 0", "start 0 at 5"])
    #expect(rig.activations.last?.position == QueuePosition(available: 5, used: 5))
  }

  /// The front-end may change a stopped ring as it likes, so the used index is read at the next start.
  @Test func baseSetByTheFrontEndLooksUpUsed() {
    var rig = Rig()
    rig.bringUp()
    rig.send(.getVringBase, Rig.state(0, 0))
    rig.send(.setVringBase, Rig.state(0, 0xffff))
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.activations.last?.position == QueuePosition(available: 0xffff, used: nil))
  }

  /// A front-end that sets the base of a paused ring has moved its used index as well.
  @Test func baseSetWhileDisabledLooksUpUsed() {
    var rig = Rig()
    rig.bringUp()
    rig.send(.setVringEnable, Rig.state(0, 0))
    rig.send(.setVringBase, Rig.state(0, 9))
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.activations.last?.position == QueuePosition(available: 9, used: nil))
  }

  /// Dirty logging toggles a feature bit and an address flag on running rings.
  @Test func repeatedFeaturesAndAddressesLeaveRunningRingsAlone() {
    var rig = Rig()
    rig.bringUp(acks: true)
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue), needReply: true)
    var address = Rig.address(0)
    address.flags = 1
    rig.send(.setVringAddress, address.bytes, needReply: true)
    rig.send(.setVringSize, Rig.state(0, 128), needReply: true)
    #expect(rig.deeds.isEmpty)
    #expect(rig.replies.map(\.payload) == Array(repeating: Rig.number(0), count: 3))
  }

  @Test func failedQueueStopsAndNeedsANewStart() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    rig.session.queueFailed(0)
    rig.send(.getStatus)
    #expect(rig.replies.last?.payload == Rig.number(0x40))
    // Neither enabling it nor new memory restarts a broken ring; the other ring continues.
    rig.send(.setVringEnable, Rig.state(0, 1))
    rig.setMemory()
    #expect(rig.takeDeeds() == ["stop 0", "stop 1", "map 1", "start 1 at 5"])
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.takeDeeds() == ["start 0 at 5"])
  }

  @Test func resetOwnerDisablesRings() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    rig.send(.resetOwner)
    #expect(rig.takeDeeds() == ["stop 0", "stop 1"])
    rig.send(.setVringEnable, Rig.state(1, 1))
    #expect(rig.takeDeeds() == ["start 1 at 5"])
  }

  @Test func resetDeviceStartsFromNothing() {
    var rig = Rig()
    rig.bringUp()
    rig.send(.setStatus, Rig.number(7))
    _ = rig.takeDeeds()
    rig.send(.resetDevice)
    #expect(rig.takeDeeds() == ["stop 0", "stop 1", "reset"])
    rig.send(.getStatus)
    #expect(rig.replies.last?.payload == Rig.number(0))
    // Memory and protocol features belong to the connection and remain.
    #expect(rig.session.table.regions.count == 1)
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue))
    rig.send(.setVringSize, Rig.state(0, 64))
    rig.send(.setVringAddress, Rig.address(0).bytes)
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.takeDeeds() == ["negotiate \(Rig.features)", "start 0 at 0"])
  }

  /// A VMM that pauses sends status 0, and its guest still relies on what it configured.
  @Test func statusZeroStopsQueuesAndKeepsTheConfiguration() {
    var rig = Rig()
    rig.bringUp()
    rig.send(.setStatus, Rig.number(15))
    _ = rig.takeDeeds()
    rig.send(.setStatus, Rig.number(0))
    #expect(rig.takeDeeds() == ["stop 0", "stop 1"])
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue))
    #expect(rig.takeDeeds().isEmpty)
  }

  @Test func queueIndicesEndAt256() {
    var rig = Rig(queues: 1000)
    rig.send(.getQueueCount)
    #expect(rig.replies.last?.payload == Rig.number(256))
  }
}

@Suite struct MemoryTests {
  @Test func changeWhileQueuesRunStopsAndGoesOn() {
    var rig = Rig()
    rig.bringUp(acks: true)
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    // The same user addresses now mean other guest addresses.
    rig.setMemory([Rig.region(0x4000_0000)], needReply: true)
    #expect(rig.takeDeeds() == ["stop 0", "stop 1", "map 1", "start 0 at 5", "start 1 at 5"])
    #expect(rig.replies.map(\.payload) == [Rig.number(0)])
    #expect(rig.activations.last?.configuration.descriptorTable == GuestAddress(0x4001_0000))
    #expect(rig.activations.last?.position == QueuePosition(available: 5, used: 5))
  }

  /// A ring whose memory is gone is reported on its err descriptor; the other continues.
  @Test func ringThatLeftMemoryFails() {
    var rig = Rig()
    rig.bringUp()
    let error = eventCounter()
    rig.send(.setVringError, Rig.word(1), [error])
    _ = rig.takeDeeds()
    rig.setMemory([Rig.region(size: 0x1_0000)])
    #expect(rig.takeDeeds() == ["stop 0", "stop 1", "map 1", "start 0 at 5", "signal", "cannot start 1"])
    #expect(EventCounter.drain(error.rawValue) == 1)
    // Once its memory is back, it starts again.
    rig.setMemory()
    #expect(rig.takeDeeds() == ["stop 0", "map 1", "start 0 at 5", "start 1 at 5"])
  }

  @Test func unchangedRegionsKeepTheirMapping() throws {
    var rig = Rig()
    let file = TestMemory.file("vhost-keep", size: Int(Rig.memorySize) * 2)
    let low = Rig.region()
    let high = Rig.region(0x1000_0000, user: Rig.userBase + Rig.memorySize, offset: Rig.memorySize)
    rig.setMemory([low], file: file)
    let first = rig.session.table.entries[0].mapping
    rig.setMemory([low, high], file: file)
    #expect(rig.session.table.entries.count == 2)
    #expect(rig.session.table.entries[0].mapping === first)
    // The same region of another file is other memory.
    rig.setMemory([low], file: TestMemory.file("vhost-keep", size: Int(Rig.memorySize)))
    #expect(rig.session.table.entries[0].mapping !== first)
  }

  @Test func slotsComeAndGo() {
    var rig = Rig()
    rig.bringUp(queues: 1)
    _ = rig.takeDeeds()
    let extra = Rig.region(0x1000_0000, user: 0x1_0000)
    rig.send(.addMemoryRegion, extra.singleBytes, [TestMemory.file("vhost-rig", size: Int(Rig.memorySize))])
    #expect(rig.session.table.regions == [Rig.region(), extra])
    // The offset is not compared, and a descriptor that comes along is closed.
    var match = extra
    match.offset = 0x5000
    rig.send(
      .removeMemoryRegion, match.singleBytes, [TestMemory.file("vhost-removed", size: 0x1000)])
    #expect(rig.session.table.regions == [Rig.region()])
    #expect(rig.deeds == ["stop 0", "map 2", "start 0 at 5", "stop 0", "map 1", "start 0 at 5"])
    #expect(TestMemory.openDescriptors(named: "vhost-removed") == 0)
  }

  @Test func oneMoreThanAllSlotsIsRefused() {
    var rig = Rig()
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    let file = TestMemory.file("vhost-slots", size: 0x1000)
    for slot in 0..<509 {
      let region = Rig.region(UInt64(slot) << 20, size: 0x1000, user: UInt64(slot) << 20)
      rig.send(.addMemoryRegion, region.singleBytes, [TestMemory.duplicate(file)], needReply: true)
    }
    #expect(rig.takeReplies().allSatisfy { $0.payload == Rig.number(0) })
    let region = Rig.region(509 << 20, size: 0x1000, user: 509 << 20)
    rig.send(.addMemoryRegion, region.singleBytes, [TestMemory.duplicate(file)], needReply: true)
    #expect(rig.replies.map(\.payload) == [Rig.number(1)])
    #expect(rig.session.table.regions.count == 509)
    // The test's descriptor, and one that the session keeps for all regions of the file.
    #expect(TestMemory.openDescriptors(named: "vhost-slots") == 2)
  }

  /// Offsets of a mapping are whole pages; a region may begin anywhere.
  @Test func regionMayBeginInsideAPage() {
    var rig = Rig()
    let file = TestMemory.file("vhost-rig", size: 0x4000)
    _ = mark(file, at: 0x1234)
    rig.setMemory([Rig.region(size: 0x100, offset: 0x1234)], file: file)
    var view = rig.session.table.memory.view()
    let piece = view.contiguous(GuestAddress(0), count: 0x100)
    #expect(unsafe piece?.base.load(as: UInt8.self) == 0xab)
  }

  private func mark(_ file: OwnedDescriptor, at offset: Int) -> Int {
    let byte: [UInt8] = [0xab]
    return unsafe byte.withUnsafeBytes { unsafe pwrite(file.rawValue, $0.baseAddress, 1, offset) }
  }
}

@Suite struct ConfigurationTests {
  /// Every offset and size that front-ends are known to send; the reply is as long as the request.
  @Test(arguments: [
    (UInt32(0), 36, UInt32(0)), (0, 57, 0), (0, 60, 1), (0, 256, 0), (0x100, 60, 0), (32, 1, 0), (59, 5, 0), (100, 156, 0),
    (256, 0, 0), (0x100, 256, 0),
  ])
  func read(offset: UInt32, count: Int, flags: UInt32) {
    var rig = Rig()
    let asked = ConfigurationPayload(offset: offset, flags: flags, contents: Array(repeating: 0xff, count: count))
    rig.send(.getConfiguration, asked.bytes, needReply: true)
    let start = offset >= 0x100 ? offset - 0x100 : offset
    let expected = ConfigurationPayload(
      offset: offset, flags: flags,
      contents: (0..<count).map { Int(start) + $0 < 60 ? UInt8(Int(start) + $0) : 0 })
    #expect(rig.replies.map(\.bytes) == [Message(replyTo: 24, payload: expected.bytes).bytes])
    #expect(rig.replies.first?.payload.count == 12 + count)
  }

  /// Row 34: a request out of range gets an empty reply, and the connection continues.
  @Test(arguments: [(UInt32(1), 256), (250, 7), (0x101, 256), (0x300, 1), (0, 257), (.max, 1)])
  func readOutOfRange(offset: UInt32, count: Int) {
    var rig = Rig()
    let asked = ConfigurationPayload(offset: offset, contents: Array(repeating: 0, count: count))
    rig.send(.getConfiguration, asked.bytes)
    #expect(rig.replies.map(\.bytes) == [[24, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]])
    #expect(rig.deeds == ["refused 24"])
  }

  @Test(arguments: [UInt32(0), 1, 2]) func writesOfEveryFlagAreAGuests(flags: UInt32) {
    var rig = Rig()
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.setConfiguration, ConfigurationPayload(offset: 32, flags: flags, contents: [1]).bytes, needReply: true)
    #expect(rig.deeds == ["write 1 at 32" + (flags == 0 ? "" : " restoring")])
    #expect(rig.replies.map(\.payload) == [Rig.number(0)])
  }

  /// One front-end always sends its whole structure, whatever size that states.
  @Test func writeMeansAsManyBytesAsItSays() {
    var rig = Rig()
    var payload = ConfigurationPayload(offset: 32, contents: [1]).bytes
    payload += Array(repeating: 0xee, count: 255)
    rig.send(.setConfiguration, payload)
    #expect(rig.deeds == ["write 1 at 32"])
  }

  @Test func writeThatTheDeviceRefusesIsRefused() {
    var rig = Rig()
    rig.writable = false
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.setConfiguration, ConfigurationPayload(offset: 0, contents: [1]).bytes, needReply: true)
    #expect(rig.replies.map(\.payload) == [Rig.number(1)])
    rig.send(.setConfiguration, ConfigurationPayload(offset: 0, contents: [1]).bytes)
    #expect(rig.deeds == ["write 1 at 0", "refused 25", "write 1 at 0", "refused 25"])
  }

  /// While every ring is stopped no change may be reported; it is reported when a ring starts.
  @Test func changeIsToldWhenARingIsStarted() {
    var rig = Rig()
    rig.send(.setBackendRequestDescriptor, [], [socketPair().0])
    rig.session.configurationChanged()
    rig.run()
    #expect(rig.takeDeeds() == ["channel"])
    rig.bringUp(queues: 2)
    #expect(rig.takeDeeds().filter { $0 == "say 2" }.count == 1)
    rig.session.configurationChanged()
    rig.run()
    #expect(rig.takeDeeds() == ["say 2"])
  }

  @Test func changeWithoutAChannelIsKeptToOurselves() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    rig.session.configurationChanged()
    rig.run()
    #expect(rig.deeds.isEmpty)
  }
}
