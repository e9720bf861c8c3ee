/// Messages that must be refused (rows 15, 34, 35 and 38 of the bad-input list).
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

/// A message that breaks a rule, and what happens if no acknowledgement was requested.
struct BadMessage: Sendable, CustomTestStringConvertible {
  enum Fate: Sendable {
    /// It is reported in the log, and the connection continues.
    case noted
    /// The front-end cannot be told and would rely on it: the connection ends.
    case ended
  }

  var name: String
  var request: FrontendRequest
  var payload: [UInt8]
  /// How many descriptors are sent with it, all of a memory file of 64 KiB.
  var descriptors = 0
  var fate: Fate
  var testDescription: String { name }

  static let limit = UInt64.max

  static func table(_ name: String, _ regions: [MemoryRegion], descriptors: Int? = nil) -> BadMessage {
    BadMessage(
      name: name, request: .setMemoryTable, payload: MemoryRegion.encode(table: regions),
      descriptors: descriptors ?? regions.count, fate: descriptors == nil ? .ended : .noted)
  }

  static func region(_ guest: UInt64, _ size: UInt64, _ user: UInt64, _ offset: UInt64 = 0) -> MemoryRegion {
    MemoryRegion(guestAddress: GuestAddress(guest), size: size, userAddress: user, offset: offset)
  }

  static let all: [BadMessage] = [
    // Sizes.
    .init(name: "features of 7 bytes", request: .setFeatures, payload: Array(repeating: 0, count: 7), fate: .ended),
    .init(name: "vring state of 7 bytes", request: .setVringSize, payload: Array(repeating: 0, count: 7), fate: .ended),
    .init(name: "vring address of 39 bytes", request: .setVringAddress, payload: Array(repeating: 0, count: 39), fate: .ended),
    .init(name: "kick of 4 bytes", request: .setVringKick, payload: [0, 0, 0, 0], descriptors: 1, fate: .ended),
    .init(
      name: "table shorter than its count", request: .setMemoryTable, payload: [2, 0, 0, 0] + Array(repeating: 0, count: 36),
      descriptors: 2, fate: .ended),
    .init(
      name: "region of 32 bytes", request: .addMemoryRegion, payload: Array(repeating: 0, count: 32), descriptors: 1,
      fate: .ended),
    .init(name: "configuration of 5 bytes", request: .setConfiguration, payload: [0, 0, 0, 0, 0], fate: .ended),
    // Descriptors.
    .table("table with too few descriptors", [region(0, 0x1000, 0), region(0x2000, 0x1000, 0x2000)], descriptors: 1),
    .table("table with too many descriptors", [region(0, 0x1000, 0)], descriptors: 3),
    .init(
      name: "slot without a descriptor", request: .addMemoryRegion, payload: region(1 << 40, 0x1000, 0).singleBytes,
      fate: .noted),
    .init(
      name: "slot with two descriptors", request: .addMemoryRegion, payload: region(1 << 40, 0x1000, 0).singleBytes,
      descriptors: 2, fate: .noted),
    .init(
      name: "removal with two descriptors", request: .removeMemoryRegion, payload: region(0, 1, 0).singleBytes,
      descriptors: 2, fate: .noted),
    .init(name: "kick without its descriptor", request: .setVringKick, payload: Rig.word(0), fate: .noted),
    .init(
      name: "kick that claims to have none", request: .setVringKick, payload: Rig.word(0, hasDescriptor: false),
      descriptors: 1, fate: .noted),
    .init(name: "call with two descriptors", request: .setVringCall, payload: Rig.word(0), descriptors: 2, fate: .noted),
    .init(name: "err without its descriptor", request: .setVringError, payload: Rig.word(0), fate: .noted),
    .init(name: "kick that is a file", request: .setVringKick, payload: Rig.word(0), descriptors: 1, fate: .noted),
    .init(name: "call that is a file", request: .setVringCall, payload: Rig.word(0), descriptors: 1, fate: .noted),
    .init(name: "err that is a file", request: .setVringError, payload: Rig.word(1), descriptors: 1, fate: .noted),
    .init(name: "channel that is a file", request: .setBackendRequestDescriptor, payload: [], descriptors: 1, fate: .noted),
    .init(name: "no channel", request: .setBackendRequestDescriptor, payload: [], fate: .noted),
    // Regions.
    .table("empty region", [region(0, 0, 0)]),
    .table("region past the guest's space", [region(limit - 0xfff, 0x1001, 0)]),
    .table("region past the user space", [region(0, 0x1001, limit - 0xfff)]),
    .table("offset that overflows", [region(0, 0x1000, 0, limit - 0x7ff)]),
    .table("offset past every file", [region(0, 0x1000, 0, 1 << 63)]),
    .table("region larger than its file", [region(0, 0x1_0001, 0)]),
    .table("region beyond its file", [region(0, 0x1000, 0, 0x1_0000)]),
    .table("guest ranges overlap", [region(0x1000, 0x1000, 0), region(0x1fff, 0x1000, 0x1_0000)]),
    .table("user ranges overlap", [region(0, 0x1000, 0x1000), region(0x10_0000, 0x1000, 0x1800)]),
    .table("one good region and one too large", [region(0, 0x1000, 0), region(0x10_0000, 1 << 40, 0x10_0000)]),
    .init(
      name: "slot on top of another", request: .addMemoryRegion,
      payload: region(Rig.memorySize - 1, 0x1000, 0).singleBytes, descriptors: 1, fate: .ended),
    .init(
      name: "slot that is not there", request: .removeMemoryRegion, payload: region(0, 0x1000, Rig.userBase).singleBytes,
      fate: .ended),
    // Queues.
    .init(name: "size of queue 2", request: .setVringSize, payload: Rig.state(2, 16), fate: .noted),
    .init(name: "size of queue 2^32-1", request: .setVringSize, payload: Rig.state(.max, 16), fate: .noted),
    .init(name: "kick of queue 255", request: .setVringKick, payload: Rig.word(255), descriptors: 1, fate: .noted),
    .init(
      name: "address of queue 2", request: .setVringAddress,
      payload: VringAddress(index: 2, descriptorTable: 0, usedRing: 0, availableRing: 0).bytes, fate: .noted),
    .init(name: "size 0", request: .setVringSize, payload: Rig.state(1, 0), fate: .noted),
    .init(name: "size 3", request: .setVringSize, payload: Rig.state(1, 3), fate: .noted),
    .init(name: "size above the device's", request: .setVringSize, payload: Rig.state(1, 2048), fate: .noted),
    .init(name: "size 65536", request: .setVringSize, payload: Rig.state(1, 65536), fate: .noted),
    .init(name: "other size while running", request: .setVringSize, payload: Rig.state(0, 64), fate: .noted),
    .init(name: "base while running", request: .setVringBase, payload: Rig.state(0, 0), fate: .noted),
    .init(name: "base above 16 bits", request: .setVringBase, payload: Rig.state(1, 0x8000_8000), fate: .noted),
    .init(
      name: "address while running", request: .setVringAddress, payload: Rig.address(0, base: Rig.userBase + 64).bytes,
      fate: .noted),
    .init(
      name: "misaligned address", request: .setVringAddress, payload: Rig.address(1, base: Rig.userBase + 8).bytes,
      fate: .noted),
    .init(name: "address nowhere", request: .setVringAddress, payload: Rig.address(1, base: 0x1000).bytes, fate: .noted),
    .init(name: "enable 2", request: .setVringEnable, payload: Rig.state(1, 2), fate: .noted),
    // The device.
    .init(name: "features that were not offered", request: .setFeatures, payload: Rig.number(1 << 27), fate: .ended),
    .init(
      name: "protocol features that were not offered", request: .setProtocolFeatures, payload: Rig.number(1 << 3 | 1 << 18),
      fate: .ended),
    .init(
      name: "write past the configuration", request: .setConfiguration,
      payload: ConfigurationPayload(offset: 255, contents: [1, 2]).bytes, fate: .noted),
    .init(
      name: "write of nothing", request: .setConfiguration, payload: ConfigurationPayload(offset: 0, contents: []).bytes,
      fate: .noted),
    .init(name: "not offered", request: .setInflight, payload: Array(repeating: 0, count: 24), descriptors: 1, fate: .noted),
    .init(
      name: "not offered, has its own reply", request: .getSharedObject, payload: Array(repeating: 0, count: 16), fate: .ended),
  ]
}

@Suite struct RefusalTests {
  /// Queue 0 runs, queue 1 is set up and waits; every descriptor that is sent is a memory file.
  private func refuse(_ bad: BadMessage, needReply: Bool) -> Rig {
    var rig = Rig()
    rig.bringUp(queues: 1)
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    let name = "refused-" + UUID().uuidString
    let file = TestMemory.file(name, size: 0x1_0000)
    rig.send(
      bad.request, bad.payload, (0..<bad.descriptors).map { _ in TestMemory.duplicate(file) }, needReply: needReply)
    #expect(TestMemory.openDescriptors(named: name) == 1, "a descriptor was left open")
    return rig
  }

  @Test(arguments: BadMessage.all) func refusedWithAWord(bad: BadMessage) {
    var rig = refuse(bad, needReply: true)
    if bad.request.hasOwnReply {
      #expect(rig.deeds == ["close"])
      return
    }
    #expect(rig.replies.map(\.bytes) == [Message(replyTo: bad.request.rawValue, payload: Rig.number(1)).bytes])
    #expect(!rig.deeds.contains("close"))
    expectQueueZeroGoesOn(&rig)
  }

  @Test(arguments: BadMessage.all) func refusedInSilence(bad: BadMessage) {
    var rig = refuse(bad, needReply: false)
    #expect(rig.replies.isEmpty)
    switch bad.fate {
    case .noted:
      #expect(rig.deeds.last == "refused \(bad.request.rawValue)")
      expectQueueZeroGoesOn(&rig)
    case .ended: #expect(rig.deeds.last == "close")
    }
  }

  /// A refused message has changed nothing: the queue that ran still runs, with the same memory.
  private func expectQueueZeroGoesOn(_ rig: inout Rig) {
    #expect(rig.running == [0])
    #expect(rig.session.table.regions == [Rig.region()])
    #expect(rig.activations.last?.configuration == rig.activations.first?.configuration)
  }

  /// A memory table that looks valid but cannot be mapped stops the queues and restarts them as they were.
  @Test func tableThatCannotBeMappedLeavesTheOldOne() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    rig.setMemory(
      [Rig.region(size: 0x1000)], file: TestMemory.file("vhost-short", size: 0xfff), needReply: true)
    #expect(rig.deeds == ["stop 0", "stop 1", "start 0 at 5", "start 1 at 5", "refused 5"])
    #expect(rig.replies.map(\.payload) == [Rig.number(1)])
    #expect(TestMemory.openDescriptors(named: "vhost-short") == 0)
  }

  @Test func descriptorThatIsNoMemoryIsRefused() {
    var rig = Rig()
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.addMemoryRegion, Rig.region().singleBytes, [eventCounter()], needReply: true)
    #expect(rig.replies.map(\.payload) == [Rig.number(1)])
  }

  /// The front-end waits for a base; for a queue that does not exist, it is 0.
  @Test func baseOfNoQueueIsAnswered() {
    var rig = Rig()
    rig.send(.getVringBase, Rig.state(9, 0))
    #expect(rig.replies.map(\.payload) == [Rig.state(9, 0)])
    #expect(rig.deeds == ["refused 11"])
  }

  @Test func queueThatTheDeviceCannotStartIsTold() {
    var rig = Rig()
    rig.bringUp(queues: 0)
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    rig.startFailure = .unmapped(part: .usedRing, GuestAddress(0))
    let error = eventCounter()
    rig.send(.setVringSize, Rig.state(0, 128))
    rig.send(.setVringAddress, Rig.address(0).bytes)
    rig.send(.setVringError, Rig.word(0), [error])
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    rig.send(.setVringEnable, Rig.state(0, 1), needReply: true)
    #expect(rig.deeds == ["start 0 at 0", "signal", "cannot start 0", "refused 18"])
    #expect(rig.replies.map(\.payload) == [Rig.number(1)])
    #expect(EventCounter.drain(error.rawValue) == 1)
    // Once the cause is removed, it starts.
    rig.startFailure = nil
    rig.send(.setVringEnable, Rig.state(0, 1), needReply: true)
    #expect(rig.replies.last?.payload == Rig.number(0))
  }

  /// A refused size is ignored; the previous one stays in force, if there is one.
  @Test func aRefusedSizeLeavesTheOneBefore() {
    var rig = Rig()
    rig.bringUp()
    rig.send(.getVringBase, Rig.state(0, 0))
    rig.send(.setVringSize, Rig.state(0, 3))
    _ = rig.takeDeeds()
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.takeDeeds() == ["start 0 at 5"])
    #expect(rig.activations.last?.configuration.size == 128)

    var fresh = Rig()
    fresh.bringUp(queues: 0)
    fresh.send(.setVringSize, Rig.state(0, 3))
    _ = fresh.takeDeeds()
    fresh.send(.setVringAddress, Rig.address(0).bytes)
    fresh.send(.setVringKick, Rig.word(0), [eventCounter()])
    fresh.send(.setVringEnable, Rig.state(0, 1))
    #expect(fresh.takeDeeds().isEmpty)
    fresh.send(.setVringSize, Rig.state(0, 4))
    #expect(fresh.takeDeeds() == ["start 0 at 0"])
  }

  /// The whole state of a session except its queues' progress, with descriptors by number.
  private func account(_ session: BackendSession) -> String {
    var session = session
    session.startRefuses = false
    for index in session.rings.indices { session.rings[index].position = QueuePosition() }
    var text = ""
    dump(session, to: &text)
    return text
  }

  /// A ring that is set up and does not run, so that there is state to spoil.
  @Test(arguments: BadMessage.all) func aRefusedMessageLeavesTheSessionAsItWas(bad: BadMessage) {
    var rig = Rig()
    rig.bringUp(queues: 2)
    rig.send(.setVringEnable, Rig.state(1, 0))
    let before = account(rig.session)
    let file = TestMemory.file("refused", size: 0x1_0000)
    rig.send(bad.request, bad.payload, (0..<bad.descriptors).map { _ in TestMemory.duplicate(file) }, needReply: true)
    #expect(account(rig.session) == before)
  }

  /// Front-ends that always send a whole structure, however little of it a message needs.
  @Test(arguments: [
    (FrontendRequest.setOwner, [UInt8]()), (.getFeatures, []), (.setFeatures, Rig.number(Rig.features.rawValue)),
    (.setVringSize, Rig.state(1, 16)), (.setVringBase, Rig.state(1, 3)), (.setVringAddress, Rig.address(1).bytes),
    (.setVringEnable, Rig.state(1, 1)), (.getQueueCount, []), (.setStatus, Rig.number(1)), (.getStatus, []),
    (.removeMemoryRegion, Rig.region().singleBytes), (.getVringBase, Rig.state(0, 0)),
  ]) func whatIsLongerThanNeededIsTaken(request: FrontendRequest, payload: [UInt8]) {
    var rig = Rig()
    rig.bringUp(queues: 1)
    _ = rig.takeDeeds()
    rig.send(request, payload + [UInt8](repeating: 0xff, count: 40), needReply: true)
    #expect(!rig.deeds.contains { $0.hasPrefix("refused") || $0 == "close" }, "\(rig.deeds)")
  }

  /// User-mode Linux sends room for two regions, 72 bytes, and a count of one.
  @Test func aMemoryTableWithMoreRoomThanRegionsIsTaken() {
    var rig = Rig()
    let payload = MemoryRegion.encode(table: [Rig.region()]) + [UInt8](repeating: 0, count: 32)
    #expect(payload.count == 72)
    rig.send(.setMemoryTable, payload, [TestMemory.file("vhost-room", size: Int(Rig.memorySize))])
    #expect(rig.deeds == ["map 1"])
    #expect(rig.session.table.regions == [Rig.region()])
  }

  /// The budget covers all regions together, however they arrive.
  @Test func memoryBeyondTheBudgetIsRefused() {
    var rig = Rig()
    rig.session = BackendSession(
      .init(features: Rig.features, queueCount: 2, maximumQueueSize: 128, memoryBudget: 3 * 0x1000))
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    let file = TestMemory.file("vhost-budget", size: 0x10_0000)
    func region(_ index: UInt64, _ pages: UInt64) -> MemoryRegion {
      Rig.region(index << 20, size: pages << 12, user: index << 20)
    }
    rig.setMemory([region(0, 2), region(1, 2)], file: file, needReply: true)
    #expect(rig.takeReplies().last?.payload == Rig.number(1))
    rig.setMemory([region(0, 2)], file: file, needReply: true)
    rig.send(.addMemoryRegion, region(1, 2).singleBytes, [TestMemory.duplicate(file)], needReply: true)
    rig.send(.addMemoryRegion, region(1, 1).singleBytes, [TestMemory.duplicate(file)], needReply: true)
    #expect(rig.takeReplies().map(\.payload) == [Rig.number(0), Rig.number(1), Rig.number(0)])
    rig.send(.addMemoryRegion, region(2, .max >> 12).singleBytes, [TestMemory.duplicate(file)], needReply: true)
    #expect(rig.takeReplies().map(\.payload) == [Rig.number(1)])
  }

  /// A guest whose memory is not shared: its rings have everything else.
  @Test func ringsThatWaitForMemoryAreSaidToWait() {
    var rig = Rig()
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue))
    let error = eventCounter()
    rig.send(.setVringSize, Rig.state(0, 128))
    rig.send(.setVringAddress, Rig.address(0).bytes)
    rig.send(.setVringError, Rig.word(0), [error])
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.session.ringsWithoutMemory.isEmpty)
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.session.ringsWithoutMemory == [0])
    _ = rig.takeDeeds()
    rig.session.memoryIsMissing()
    rig.run()
    #expect(rig.takeDeeds() == ["signal", "cannot start 0"])
    #expect(EventCounter.drain(error.rawValue) == 1)
    #expect("\(Refusal.noMemory)".contains("share=on"))
    rig.setMemory()
    #expect(rig.session.ringsWithoutMemory.isEmpty)
  }

  /// The err descriptor is signalled, if it is known by then; the message is refused in any case.
  @Test(arguments: [false, true]) func ringsThatLieInNoMemoryAreSaidToDoSo(isAcknowledged: Bool) {
    var rig = Rig()
    rig.send(.setFeatures, Rig.number(Rig.features.union(.protocolFeatures).rawValue))
    if isAcknowledged { rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.replyAck.rawValue)) }
    rig.setMemory()
    let error = eventCounter()
    rig.send(.setVringSize, Rig.state(0, 128))
    rig.send(.setVringError, Rig.word(0), [error])
    rig.send(.setVringAddress, Rig.address(0).bytes)
    #expect(EventCounter.drain(error.rawValue) == 0)
    _ = rig.takeDeeds()
    let elsewhere = Rig.address(0, base: 0x7777_0000_0000).bytes
    let flags: MessageHeader.Flags = isAcknowledged ? [.version1, .needReply] : .version1
    rig.send(Message(request: FrontendRequest.setVringAddress.rawValue, flags: flags, payload: elsewhere))
    #expect(rig.takeDeeds() == ["signal", "refused \(FrontendRequest.setVringAddress.rawValue)"])
    #expect(EventCounter.drain(error.rawValue) == 1)
    // Another ring's err descriptor is not known, and no other one is signalled.
    rig.send(.setVringAddress, Rig.address(1, base: 0x7777_0000_0000).bytes)
    #expect(rig.takeDeeds() == ["refused \(FrontendRequest.setVringAddress.rawValue)"])
    #expect(EventCounter.drain(error.rawValue) == 0)
  }

  @Test func featuresThatTheDeviceCannotWorkWith() {
    var rig = Rig()
    rig.acceptsFeatures = false
    rig.send(.setFeatures, Rig.number(FeatureSet.eventIndex.rawValue))
    #expect(rig.deeds == ["negotiate \(FeatureSet.eventIndex)", "close"])
    #expect(rig.session.features == nil)
  }

  @Test func requestsFromTheFutureAreDroppedOrDenied() {
    var rig = Rig()
    rig.send(Message(request: 200, flags: [.version1, .needReply]))
    #expect(rig.replies.isEmpty)
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.replyAck.rawValue))
    rig.send(Message(request: 200, flags: [.version1, .needReply]))
    rig.send(Message(request: 0, flags: .version1, descriptors: [TestMemory.file("vhost-future", size: 1)]))
    #expect(rig.replies.map(\.bytes) == [[200, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]])
    #expect(rig.deeds == ["refused 200", "refused 200", "refused 0"])
    #expect(TestMemory.openDescriptors(named: "vhost-future") == 0)
  }

  /// Unexpected descriptors are closed, and the message is handled.
  @Test func descriptorsThatNobodyExpects() {
    var rig = Rig()
    rig.send(.getFeatures, [], [TestMemory.file("vhost-stray", size: 1)])
    #expect(rig.replies.count == 1)
    #expect(TestMemory.openDescriptors(named: "vhost-stray") == 0)
  }
}
