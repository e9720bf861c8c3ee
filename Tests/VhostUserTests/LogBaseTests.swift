/// Dirty logging as a front-end requests it: a log, then features and addresses that determine what is logged.
import CLinux
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct LogBaseTests {
  private static let everything = Rig.features.union(.betweenEnds)
  private static let without = Rig.features.union(.protocolFeatures)

  private static func setLog(_ rig: inout Rig, size: UInt64 = 4096, offset: UInt64 = 0, fileSize: Int = 8192) {
    rig.send(.setLogBase, SharedArea(size: size, offset: offset).bytes, [TestMemory.file("vhost-log", size: fileSize)])
  }

  private static func logged(_ index: UInt32) -> [UInt8] {
    var address = Rig.address(index)
    address.flags = 1
    address.log = 0x1_2340
    return address.bytes
  }

  /// As a VMM does at the beginning and the end of a migration: rings continue where they were, and log in between.
  @Test func aMigrationBeginsAndEnds() throws {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    Self.setLog(&rig)
    #expect(rig.takeDeeds() == ["map log"], "nothing is logged yet")
    #expect(rig.takeReplies().map(\.payload) == [SharedArea(size: 4096, offset: 0).bytes])

    rig.send(.setFeatures, Rig.number(Self.everything.rawValue))
    #expect(rig.takeDeeds() == ["stop 0", "start 0 at 5", "stop 1", "start 1 at 5"])
    let buffers = try #require(rig.activations.last?.log)
    #expect(buffers.coversBuffers && buffers.usedRing == nil)

    rig.send(.setVringAddress, Self.logged(1))
    #expect(rig.takeDeeds() == ["stop 1", "start 1 at 5"])
    let both = try #require(rig.activations.last?.log)
    #expect(both.coversBuffers && both.usedRing == 0x1_2340)
    // The same message again changes nothing.
    rig.send(.setVringAddress, Self.logged(1))
    rig.send(.setFeatures, Rig.number(Self.everything.rawValue))
    #expect(rig.takeDeeds().isEmpty)

    // A larger log while it is in use.
    Self.setLog(&rig, size: 8192)
    #expect(rig.takeDeeds() == ["stop 0", "stop 1", "map log", "start 0 at 5", "start 1 at 5"])
    #expect(rig.activations.suffix(2).allSatisfy { $0.log?.log.size == 8192 })

    rig.send(.setFeatures, Rig.number(Self.without.rawValue))
    #expect(rig.takeDeeds() == ["stop 0", "start 0 at 5", "stop 1", "start 1 at 5"])
    #expect(rig.activations.last?.log?.coversBuffers == false)
    rig.send(.setVringAddress, Rig.address(1).bytes)
    #expect(rig.takeDeeds() == ["stop 1", "start 1 at 5"])
    #expect(rig.activations.last?.log == nil)
    #expect(rig.session.features == Rig.features, "bits for the transport are not passed to the device")
  }

  /// In any order, and for rings that start later.
  @Test func theLogMayComeLast() throws {
    var rig = Rig()
    rig.bringUp(queues: 1)
    rig.send(.setFeatures, Rig.number(Self.everything.rawValue))
    rig.send(.setVringAddress, Self.logged(0))
    #expect(rig.activations.allSatisfy { $0.log == nil })
    _ = rig.takeDeeds()
    Self.setLog(&rig)
    #expect(rig.takeDeeds() == ["stop 0", "map log", "start 0 at 5"])
    #expect(rig.activations.last?.log?.usedRing == 0x1_2340)
    rig.send(.getVringBase, Rig.state(0, 0))
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.activations.last?.log?.coversBuffers == true)
  }

  /// A log that cannot be mapped ends the connection, because its front-end waits for an answer of another kind.
  @Test(arguments: [
    "no descriptor", "two descriptors", "short", "nothing", "cut file", "end of file", "overflow", "too large", "no file",
  ])
  func aBadLogIsRefused(what: String) {
    var rig = Rig()
    rig.bringUp(queues: 1)
    rig.send(.setFeatures, Rig.number(Self.everything.rawValue))
    _ = rig.takeDeeds()
    _ = rig.takeReplies()
    let file = TestMemory.file("vhost-log", size: 4096)
    let good = SharedArea(size: 4096, offset: 0).bytes
    switch what {
    case "no descriptor": rig.send(.setLogBase, good)
    case "two descriptors": rig.send(.setLogBase, good, [file, TestMemory.duplicate(file)])
    case "short": rig.send(.setLogBase, Array(good.dropLast()), [file])
    case "nothing": rig.send(.setLogBase, SharedArea(size: 0, offset: 0).bytes, [file])
    case "cut file": rig.send(.setLogBase, SharedArea(size: 4097, offset: 0).bytes, [file])
    case "end of file": rig.send(.setLogBase, SharedArea(size: 1, offset: 4096).bytes, [file])
    case "overflow": rig.send(.setLogBase, SharedArea(size: 4096, offset: .max - 4000).bytes, [file])
    case "too large": rig.send(.setLogBase, SharedArea(size: 1 << 38, offset: 0).bytes, [file])
    default: rig.send(.setLogBase, good, [eventCounter()])
    }
    #expect(rig.takeReplies().isEmpty)
    let deeds = rig.takeDeeds()
    #expect(deeds.last == "close", "\(deeds)")
    #expect(!deeds.contains("map log"))
    #expect(rig.session.log == nil)
  }
}
