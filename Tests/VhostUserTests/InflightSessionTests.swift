/// GET_INFLIGHT_FD and SET_INFLIGHT_FD as messages: who gets records, who is refused, and which queues write to them.
import Glibc
import Testing
import VirtioCore

@testable import VhostUser

extension Rig {
  /// A file with room for the records of `queues` rings of `size` entries, and its description.
  static func records(queues: UInt16 = 2, size: UInt16 = 128, offset: UInt64 = 0) -> (InflightDescription, OwnedDescriptor) {
    let bytes = UInt64(queues) * (16 * UInt64(size) + 64)
    let description = InflightDescription(byteCount: bytes, offset: offset, queueCount: queues, queueSize: size)
    return (description, TestMemory.file("vhost-records", size: Int(bytes + offset)))
  }

  mutating func setRecords(_ records: (InflightDescription, OwnedDescriptor), needReply: Bool = false) {
    send(.setInflight, records.0.bytes, [TestMemory.duplicate(records.1)], needReply: needReply)
  }
}

@Suite struct InflightSessionTests {
  /// All other implementations insist on 24 bytes, of which they fill 20.
  @Test func wire() throws {
    let description = InflightDescription(byteCount: 0x1122, offset: 0x3000, queueCount: 4, queueSize: 0x80)
    let bytes: [UInt8] =
      [0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0, 4, 0, 0x80, 0, 0, 0, 0, 0]
    #expect(description.bytes == bytes)
    #expect(InflightDescription(decoding: bytes) == description)
    #expect(InflightDescription(decoding: Array(bytes.prefix(20))) == description)
    #expect(InflightDescription(decoding: bytes + [1, 2, 3]) == description)
    #expect(InflightDescription(decoding: Array(bytes.prefix(19))) == nil)
  }

  @Test func recordsAreAFileThatCanBeMapped() throws {
    var rig = Rig()
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.getInflight, InflightDescription(queueCount: 2, queueSize: 256).bytes, needReply: true)
    let replies = rig.takeReplies()
    #expect(replies.count == 1)
    let reply = try #require(replies.first)
    #expect(reply.flags == [.version1, .reply])
    let description = try #require(InflightDescription(decoding: reply.payload))
    #expect(reply.payload.count == 24)
    #expect((description.queueCount, description.queueSize) == (2, 256))
    #expect(description.byteCount >= 2 * (16 + 16 * 256))
    #expect(description.offset % 4096 == 0)
    let file = try #require(reply.descriptors.first)
    var information = stat()
    #expect(unsafe fstat(file.rawValue, &information) == 0)
    #expect(UInt64(information.st_size) >= description.offset + description.byteCount)
    // The request alone changes nothing.
    rig.bringUp()
    #expect(rig.activations.allSatisfy { $0.inflight == nil })
  }

  /// The front-end is told that there are none, and goes on without records.
  @Test(arguments: [(0, 128), (3, 128), (65535, 128), (2, 0), (2, 1025), (2, 65535)] as [(UInt16, UInt16)])
  func unreasonableWishesGetNone(queues: UInt16, size: UInt16) throws {
    var rig = Rig()
    rig.send(.getInflight, InflightDescription(queueCount: queues, queueSize: size).bytes)
    #expect(rig.takeReplies().map(\.payload) == [[UInt8](repeating: 0, count: 24)])
    #expect(rig.takeDeeds() == ["refused 31"])
    rig.bringUp()
    #expect(rig.activations.count == 2)
  }

  @Test func everyQueueIsStartedWithTheRecords() {
    var rig = Rig(publishesInOrder: true)
    rig.setRecords(Rig.records(size: 128))
    rig.bringUp()
    #expect(rig.activations.map { $0.inflight?.queueSize } == [128, 128])
    #expect(rig.activations[0].inflight === rig.activations[1].inflight)
    // Records tell what is done, in any order.
    #expect(rig.activations.map(\.publishesInOrder) == [false, false])
  }

  /// Records for fewer queues than are started would save some requests and lose others.
  @Test func aQueueWithoutARecordAmongThoseThatHaveOneIsNotStarted() {
    var rig = Rig()
    rig.setRecords(Rig.records(queues: 1))
    rig.bringUp()
    #expect(rig.activations.map(\.queue) == [0])
    #expect(rig.deeds.contains("cannot start 1"))
  }

  /// Without records, the used index has to tell what is done, unless the operator has chosen otherwise.
  @Test(arguments: [false, true]) func withoutRecords(inOrder: Bool) {
    var rig = Rig(publishesInOrder: inOrder)
    rig.bringUp()
    #expect(rig.activations.map(\.publishesInOrder) == [inOrder, inOrder])
  }

  @Test func aRingLargerThanItsRecordIsNotStarted() {
    var rig = Rig()
    rig.setRecords(Rig.records(size: 64))
    rig.bringUp()
    #expect(rig.activations.isEmpty)
    #expect(rig.deeds.contains("cannot start 0"))
  }

  /// Nothing changes under a running queue; the old records stay.
  @Test func notWhileAQueueRuns() {
    var rig = Rig()
    rig.setRecords(Rig.records())
    rig.bringUp(acks: true)
    _ = rig.takeReplies()
    let before = rig.session.inflight
    rig.setRecords(Rig.records(), needReply: true)
    #expect(rig.takeReplies().map(\.payload) == [Rig.number(1)])
    #expect(rig.session.inflight === before)
    rig.setRecords(Rig.records())
    #expect(rig.takeDeeds().suffix(1) == ["refused 32"])
    for queue: UInt32 in [0, 1] { rig.send(.getVringBase, Rig.state(queue, 0)) }
    rig.setRecords(Rig.records())
    #expect(rig.session.inflight !== before)
  }

  /// A front-end whose error cannot be reported must not rely on records that nobody keeps.
  @Test(
    arguments: [
      ("room for one queue of two", 64 + 16 * 128, 0, 2, 128), ("no room", 0, 0, 2, 128), ("no queue", 4224, 0, 0, 128),
      ("too many queues", 4224, 0, 3, 128), ("rings of no size", 4224, 0, 2, 0), ("rings that are too large", 4224, 0, 2, 2048),
      ("past the end of the file", 4224, 1 << 20, 2, 128), ("past the end of all files", 4224, UInt64.max - 4095, 2, 128),
      ("more than there is", UInt64.max, 0, 2, 128),
    ] as [(String, UInt64, UInt64, UInt16, UInt16)])
  func uselessRecords(what: String, bytes: UInt64, offset: UInt64, queues: UInt16, size: UInt16) {
    for needReply in [true, false] {
      var rig = Rig()
      rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
      let file = TestMemory.file("vhost-records", size: 8192)
      let description = InflightDescription(byteCount: bytes, offset: offset, queueCount: queues, queueSize: size)
      rig.send(.setInflight, description.bytes, [TestMemory.duplicate(file)], needReply: needReply)
      #expect(rig.session.inflight == nil, "\(what)")
      #expect(rig.takeDeeds() == [needReply ? "refused 32" : "close"], "\(what)")
      #expect(rig.takeReplies().map(\.payload) == (needReply ? [Rig.number(1)] : []))
    }
  }

  @Test(arguments: [0, 2]) func oneDescriptorAndNoMore(count: Int) {
    var rig = Rig()
    let (description, file) = Rig.records()
    rig.send(.setInflight, description.bytes, (0..<count).map { _ in TestMemory.duplicate(file) })
    #expect(rig.session.inflight == nil)
    #expect(rig.takeDeeds() == ["refused 32"])
  }

  /// Guest memory and records share one budget, whichever is mapped first.
  @Test func budget() {
    let (description, file) = Rig.records()
    for (extra, fits) in [(UInt64(0), true), (1, false)] {
      var rig = Rig(memoryBudget: Rig.memorySize + description.byteCount - extra)
      rig.setMemory()
      rig.setRecords((description, file))
      #expect((rig.session.inflight != nil) == fits)
      rig = Rig(memoryBudget: Rig.memorySize + description.byteCount - extra)
      rig.setRecords((description, file))
      rig.setMemory()
      #expect(rig.session.table.regions.isEmpty != fits)
    }
  }

  /// If a front-end starts again without new records, the old ones are reset: nothing of the rings before is left to do.
  @Test func resetMakesThemNew() {
    var rig = Rig()
    let records = Rig.records()
    rig.setRecords(records)
    rig.bringUp()
    // Version 1, a ring of 128, and a head that is in flight.
    let inFlight: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 0, 0, 0, 0, 1]
    for queue in 0..<2 {
      let place = off_t(queue * (16 * 128 + 64))
      #expect(unsafe pwrite(records.1.rawValue, inFlight, inFlight.count, place) == inFlight.count)
    }
    rig.send(.resetDevice)
    rig.activations = []
    rig.bringUp()
    #expect(rig.activations.map { $0.inflight != nil } == [true, true])
    for queue in 0..<2 {
      var version: UInt16 = 7
      #expect(unsafe pread(records.1.rawValue, &version, 2, off_t(queue * (16 * 128 + 64) + 8)) == 2)
      #expect(version == 0)
    }
  }
}
