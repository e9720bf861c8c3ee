/// A driver that turned the write cache off keeps it off when its back-end is killed: front-ends do not say it again.
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

  /// New records, as a front-end gets them.
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

  /// Before its first ring runs, once.
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
    // It is in new records, too.
    for queue: UInt32 in [0, 1] { second.send(.getVringBase, Rig.state(queue, 0)) }
    let again = try Self.records(&second)
    second.setRecords(again)
    #expect(second.session.inflight?.keptConfiguration == KeptConfiguration(offset: 32, value: 0))
  }

  /// What this front-end's driver says counts more than what was kept, whichever comes first.
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

  /// A driver that begins finds the defaults.
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

  /// What was refused is not kept; nor is a byte that is another device's.
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
        // 1 is write-back: the default, and then what this driver chose.
        let value = try connected.configuration(at: Self.byte, count: 1)
        #expect(value == [incarnation == 0 ? 1 : 0], "\(incarnation)")
        if incarnation == 0 { try connected.setConfiguration(at: Self.byte, [0]) }
        // Whatever was said before has been done.
        _ = try connected.configuration(at: Self.byte, count: 1)
        let deaths = server.deaths
        server.kill()
        try wait(until: "the server is gone") { server.deaths > deaths }
      }
      #expect(server.end() == [], "\(server.words)")
    }
  }
}
