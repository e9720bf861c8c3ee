/// If a driver turned the write cache off, it stays off after its back-end was killed, although front-ends do not write the
/// field again.
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

@Suite struct KeptConfigurationTests {
  private static let byte: UInt32 = 32

  private static func rig() -> Rig {
    var rig = Rig()
    var device = rig.session.device
    device.writableByte = UInt8(byte)
    rig.session = BackendSession(device)
    return rig
  }

  /// New records, as a front-end receives them.
  private static func records(_ rig: inout Rig) throws -> (InflightDescription, OwnedDescriptor) {
    rig.send(.getInflight, InflightDescription(queueCount: 2, queueSize: 128).bytes)
    let reply = try #require(rig.takeReplies().last)
    return (try #require(InflightDescription(decoding: reply.payload)), try #require(reply.descriptors.first))
  }

  private static func write(_ rig: inout Rig, _ value: UInt8) {
    let payload = ConfigurationPayload(offset: byte, flags: 0, contents: [value])
    rig.send(.setConfiguration, payload.bytes)
  }

  private static let restoring = "write 1 at 32 restoring"

  /// The field is restored before the first ring runs, once.
  @Test func theNextServerWritesItBeforeARingRuns() throws {
    var first = Self.rig()
    let records = try Self.records(&first)
    first.setRecords(records)
    first.bringUp()
    #expect(!first.deeds.contains(Self.restoring))
    Self.write(&first, 0)
    var second = Self.rig()
    second.setRecords(records)
    #expect(!second.deeds.contains(Self.restoring))
    second.bringUp()
    #expect(second.deeds.filter { $0 == Self.restoring }.count == 1)
    let write = try #require(second.deeds.firstIndex(of: Self.restoring))
    let start = try #require(second.deeds.firstIndex { $0.hasPrefix("start") })
    #expect(write < start)
    // It is stored in new records, too.
    for queue: UInt32 in [0, 1] { second.send(.getVringBase, Rig.state(queue, 0)) }
    let again = try Self.records(&second)
    second.setRecords(again)
    #expect(second.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 0))
  }

  /// What this front-end's driver writes overrides the kept value, whichever comes first.
  @Test(arguments: [false, true]) func aDriverThatSaysItAgainIsHeard(first: Bool) throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    rig.setRecords(records)
    Self.write(&rig, 0)
    var next = Self.rig()
    if first { Self.write(&next, 1) }
    next.setRecords(records)
    if !first { Self.write(&next, 1) }
    next.bringUp()
    #expect(!next.deeds.contains(Self.restoring))
    #expect(next.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 1))
  }

  /// After a reset, the next driver finds the defaults.
  @Test func aResetForgetsIt() throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    rig.setRecords(records)
    Self.write(&rig, 0)
    rig.send(.resetDevice)
    #expect(rig.session.inflight?.keptConfiguration == nil)
    rig.bringUp()
    #expect(!rig.deeds.contains(Self.restoring))
  }

  /// A refused value is not kept, and neither is another device's byte.
  @Test func onlyWhatWasWrittenIsKept() throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    rig.setRecords(records)
    rig.writable = false
    Self.write(&rig, 0)
    #expect(rig.session.inflight?.keptConfiguration == nil)
    rig.session.inflight?.keep(KeptConfiguration(offset: 33, value: 0))
    var next = Self.rig()
    next.setRecords(records)
    next.bringUp()
    #expect(!next.deeds.contains(Self.restoring))
  }

  /// Clearing records writes to a file and may block, so it is an effect; later messages wait for it.
  @Test func recordsAreForgottenByAnEffect() throws {
    var rig = Rig(features: Rig.features.union(.ringReset))
    rig.setRecords(try Self.records(&rig))
    rig.bringUp(features: Rig.features.union(.ringReset))
    rig.send(.getVringBase, Rig.state(1, 0))
    #expect(rig.forgotten == [1])
    #expect(rig.takeReplies().last?.request == FrontendRequest.getVringBase.rawValue)
    rig.send(.resetDevice)
    #expect(rig.forgotten == [1, nil])
  }

  /// The device has another value than the driver wrote, because other features were negotiated since.
  @Test(arguments: [false, true]) func anotherChoiceCounts(hasRecordsLater: Bool) throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    if !hasRecordsLater { rig.setRecords(records) }
    rig.send(.setFeatures, Rig.number(Rig.features.rawValue))
    Self.write(&rig, 0)
    rig.written[32] = 1
    rig.send(.setFeatures, Rig.number(Rig.features.subtracting(.eventIndex).rawValue))
    if hasRecordsLater { rig.setRecords(records) }
    #expect(rig.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 1))
  }

  /// The previous driver negotiated other features: what it wrote does not apply to this one.
  @Test func whatWasToBeRestoredEndsWithItsChoice() throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    rig.setRecords(records)
    Self.write(&rig, 0)
    var next = Self.rig()
    next.setRecords(records)
    next.replacesChoice = true
    next.written[32] = 1
    next.bringUp()
    #expect(!next.deeds.contains(Self.restoring))
    #expect(next.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 1))
  }

  /// A server that keeps running has the value from the connection before; a front-end asks for new records.
  @Test(arguments: [false, true]) func whatTheDeviceHasIsInNewRecords(hasRecordsFirst: Bool) throws {
    var rig = Self.rig()
    rig.written[32] = 0
    let records = try Self.records(&rig)
    if hasRecordsFirst { rig.setRecords(records) }
    rig.send(.setFeatures, Rig.number(Rig.features.rawValue))
    if !hasRecordsFirst { rig.setRecords(records) }
    #expect(rig.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 0))
  }

  /// A device that refuses the value does not report it.
  @Test func aRefusedRestorationIsDropped() throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    rig.setRecords(records)
    Self.write(&rig, 0)
    var next = Self.rig()
    next.writable = false
    next.setRecords(records)
    next.bringUp()
    #expect(next.deeds.filter { $0 == Self.restoring }.count == 1)
    #expect(next.activations.count == 2)
    #expect(next.session.writtenConfiguration == nil && next.session.inflight?.keptConfiguration == nil)
  }

  /// The value survives a takeover, before a ring ran or after.
  @Test(arguments: [false, true]) func itGoesAlongInATakeover(isRestored: Bool) throws {
    var rig = Self.rig()
    let records = try Self.records(&rig)
    rig.setRecords(records)
    Self.write(&rig, 0)
    var second = Self.rig()
    second.setRecords(records)
    second.send(.setFeatures, Rig.number(Rig.features.rawValue))
    if isRestored {
      second.bringUp()
      // As a version would leave it that keeps nothing.
      second.session.inflight?.keep(nil)
    }
    var list = DescriptorList()
    var state = ConnectionState(
      socket: 0, unread: nil, unsent: [], channel: nil, protocolFeatures: 0, features: nil, status: 0, memory: [], log: nil,
      logsBuffers: false, inflight: nil, owesConfigurationChange: false, rings: [])
    second.session.fill(&state, &list, running: [])
    var third = Self.rig()
    third.written = second.written
    third.session = try SessionRestoration(
      state: state, list: list, device: third.session.device, table: MemoryTable()
    ).carryOut()
    third.session.keepConfiguration()
    third.run()
    if !isRestored { third.bringUp() }
    #expect(third.deeds.contains(Self.restoring) == !isRestored)
    #expect(third.written[32] == 0)
    #expect(third.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 0))
  }

  /// With real processes, the first of which is killed.
  @Test func theCacheStaysOff() throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let server = MortalServer(directory, options: [])
      defer { _ = server.end() }
      var records: FrontendInflight?
      let memory = TestMemory.file("vhost-kept", size: Int(Rig.memorySize))
      for incarnation in 0..<3 {
        var frontend: Frontend?
        try wait(until: "the server listens; it said: \(server.words)") {
          frontend = try? Frontend(connectingTo: server.socket)
          return frontend != nil
        }
        let connected = try #require(frontend)
        let offer = try connected.handshake()
        let features: FeatureSet = [.version1, FeatureSet(bit: 9), FeatureSet(bit: 11)]
        #expect(offer.features.isSuperset(of: features))
        try connected.setFeatures(features)
        try connected.setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
        if records == nil { records = try connected.getInflight(queues: 1, size: 128) }
        try connected.setInflight(try #require(records))
        let address = Rig.address(0)
        try connected.start(
          FrontendQueue(
            index: 0, size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
            usedRing: address.usedRing, kick: eventCounter(), call: eventCounter(), error: eventCounter()))
        // 1 means write-back: the default first, and then what this driver chose.
        let value = try connected.configuration(at: Self.byte, count: 1)
        #expect(value == [incarnation == 0 ? 1 : 0], "\(incarnation)")
        if incarnation == 0 { try connected.setConfiguration(at: Self.byte, [0]) }
        // Once this is answered, all earlier messages have been handled.
        _ = try connected.configuration(at: Self.byte, count: 1)
        let deaths = server.deaths
        server.kill()
        try wait(until: "the server is gone") { server.deaths > deaths }
      }
      #expect(server.end() == [], "\(server.words)")
    }
  }
}
