/// The message sequences of real front-ends, in their own order.
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

/// One front-end's messages from connecting to two running queues, and back.
struct Recipe: Sendable, CustomTestStringConvertible {
  /// A message to send; its descriptors are made when it is sent.
  enum Line: Sendable {
    case ask(FrontendRequest, [UInt8] = [])
    case features(UInt64)
    case protocolFeatures(ProtocolFeatures)
    case memory
    case addMemory
    case size(UInt32)
    case base(UInt32, UInt32 = 0)
    case address(UInt32)
    case kick(UInt8)
    case call(UInt8)
    case error(UInt8)
    case enable(UInt32)
    case disable(UInt32)
    case getBase(UInt32)
    case channel
  }

  var name: String
  var needReply = false
  var lines: [Line]
  var deeds: [String]
  var testDescription: String { name }

  static let virtio = Rig.features.rawValue
  static let virtioAndProtocol = Rig.features.union(.protocolFeatures).rawValue
  static let negotiated = "negotiate \(Rig.features)"
  static let configuration60 = ConfigurationPayload(offset: 0, flags: 1, contents: Array(repeating: 0, count: 60)).bytes
  static let configuration256 = ConfigurationPayload(offset: 0, contents: Array(repeating: 0, count: 256)).bytes

  static let qemu = Recipe(
    name: "QEMU",
    lines: [
      .ask(.getFeatures), .ask(.getProtocolFeatures), .protocolFeatures(.served), .ask(.getQueueCount),
      .ask(.getMaximumMemorySlots), .channel, .ask(.setOwner), .ask(.getFeatures), .call(0), .error(0), .call(1),
      .error(1), .ask(.getConfiguration, ConfigurationPayload(offset: 0, contents: Array(repeating: 0, count: 57)).bytes),
      .features(virtioAndProtocol), .call(0), .call(1), .features(virtioAndProtocol), .addMemory, .size(0), .base(0),
      .address(0), .kick(0), .size(1), .base(1), .address(1), .kick(1), .enable(0), .enable(1), .ask(.getStatus),
      .ask(.setStatus, Rig.number(7)), .ask(.getStatus), .disable(0), .disable(1), .getBase(0), .getBase(1),
      .ask(.setStatus, Rig.number(0)), .ask(.resetDevice),
    ],
    deeds: [
      "channel", "signal", "signal", negotiated, "signal", "signal", "map 1", "start 0 at 0", "start 1 at 0", "stop 0",
      "stop 1", "reset",
    ])

  static let oldQEMU = Recipe(
    name: "QEMU that does not acknowledge bit 30",
    lines: [
      .ask(.getFeatures), .ask(.getProtocolFeatures), .protocolFeatures([.multiqueue, .configuration]),
      .ask(.getQueueCount), .ask(.setOwner), .ask(.getFeatures), .call(0), .call(1), .features(virtio), .memory, .size(0),
      .base(0), .address(0), .kick(0), .size(1), .base(1), .address(1), .kick(1), .getBase(0), .getBase(1),
    ],
    deeds: [
      "signal", "signal", negotiated, "map 1", "start 0 at 0", "start 1 at 0", "stop 0", "stop 1",
    ])

  static let cloudHypervisor = Recipe(
    name: "Cloud Hypervisor", needReply: true,
    lines: [
      .ask(.setOwner), .ask(.getFeatures), .ask(.getProtocolFeatures),
      .protocolFeatures([.multiqueue, .configuration, .memorySlots, .replyAck]), .ask(.getQueueCount),
      .ask(.getConfiguration, configuration60), .features(virtioAndProtocol), .memory, .size(0), .size(1), .address(0),
      .base(0, 7), .call(0), .kick(0), .address(1), .base(1), .call(1), .kick(1), .enable(0), .enable(1), .disable(0),
      .disable(1), .enable(0), .enable(1), .disable(0), .disable(1), .getBase(0), .getBase(1),
    ],
    deeds: [
      negotiated, "map 1", "signal", "signal", "start 0 at 7", "start 1 at 0", "stop 0", "stop 1",
      // Resumed at their positions.
      "start 0 at 5", "start 1 at 5", "stop 0", "stop 1",
    ])

  static let spdk = Recipe(
    name: "SPDK initiator",
    lines: [
      .ask(.setOwner), .ask(.getFeatures), .features(virtioAndProtocol), .ask(.getProtocolFeatures),
      .protocolFeatures([.multiqueue, .configuration]), .enable(0), .enable(1), .ask(.getQueueCount),
      .ask(.getConfiguration, configuration256), .call(0), .call(1), .memory, .ask(.getFeatures), .size(0), .base(0),
      .address(0), .kick(0), .size(1), .base(1), .address(1), .kick(1), .getBase(0), .getBase(1), .memory,
    ],
    deeds: [
      negotiated, "signal", "signal", "map 1", "start 0 at 0", "start 1 at 0", "stop 0", "stop 1", "map 1",
    ])

  static let libblkio = Recipe(
    name: "libblkio", needReply: true,
    lines: [
      .ask(.setOwner), .ask(.getFeatures), .features(virtioAndProtocol), .ask(.getProtocolFeatures),
      .protocolFeatures([.replyAck, .configuration, .memorySlots, .multiqueue]), .ask(.getQueueCount),
      .ask(.getConfiguration, configuration60), .addMemory, .size(0), .base(0), .address(0), .kick(0), .call(0),
      .enable(0), .size(1), .base(1), .address(1), .kick(1), .call(1), .enable(1), .getBase(0), .getBase(1),
    ],
    deeds: [
      negotiated, "map 1", "signal", "start 0 at 0", "signal", "start 1 at 0", "stop 0", "stop 1",
    ])

  static let firecracker = Recipe(
    name: "Firecracker",
    lines: [
      .ask(.setOwner), .ask(.getFeatures), .ask(.getProtocolFeatures), .protocolFeatures(.configuration),
      .ask(.getConfiguration, configuration60), .features(virtioAndProtocol), .memory, .size(0), .address(0), .base(0),
      .call(0), .kick(0), .enable(0),
    ],
    deeds: [negotiated, "map 1", "signal", "start 0 at 0"])

  static let crosvm = Recipe(
    name: "crosvm",
    lines: [
      .ask(.setOwner), .ask(.getFeatures), .ask(.getProtocolFeatures),
      .protocolFeatures([.configuration, .multiqueue, .backendRequests, .replyAck]), .channel, .ask(.getQueueCount),
      .features(virtioAndProtocol), .memory, .size(0), .address(0), .base(0), .call(0), .kick(0), .enable(0),
    ],
    deeds: ["channel", negotiated, "map 1", "signal", "start 0 at 0"])

  static let backwards = Recipe(
    name: "everything in reverse order",
    lines: [
      .enable(0), .kick(0), .call(0), .address(0), .base(0, 3), .size(0), .memory, .features(virtioAndProtocol),
    ],
    deeds: ["signal", "map 1", negotiated, "start 0 at 3"])

  static let all = [qemu, oldQEMU, cloudHypervisor, spdk, libblkio, firecracker, crosvm, backwards]
}

extension Rig {
  mutating func say(_ line: Recipe.Line, needReply: Bool) {
    func say(_ request: FrontendRequest, _ payload: [UInt8], _ descriptors: [OwnedDescriptor] = []) {
      send(request, payload, descriptors, needReply: needReply)
    }
    switch line {
    case .ask(let request, let payload): say(request, payload)
    case .features(let bits): say(.setFeatures, Rig.number(bits))
    case .protocolFeatures(let features): say(.setProtocolFeatures, Rig.number(features.rawValue))
    case .memory: setMemory(needReply: needReply)
    case .addMemory:
      say(.addMemoryRegion, Rig.region().singleBytes, [TestMemory.file("vhost-rig", size: Int(Rig.memorySize))])
    case .size(let index): say(.setVringSize, Rig.state(index, 128))
    case .base(let index, let base): say(.setVringBase, Rig.state(index, base))
    case .address(let index): say(.setVringAddress, Rig.address(index).bytes)
    case .kick(let index): say(.setVringKick, Rig.word(index), [eventCounter()])
    case .call(let index): say(.setVringCall, Rig.word(index), [eventCounter()])
    case .error(let index): say(.setVringError, Rig.word(index), [eventCounter()])
    case .enable(let index): say(.setVringEnable, Rig.state(index, 1))
    case .disable(let index): say(.setVringEnable, Rig.state(index, 0))
    case .getBase(let index): say(.getVringBase, Rig.state(index, 0))
    case .channel: say(.setBackendRequestDescriptor, [], [socketPair().0])
    }
  }
}

@Suite struct RecipeTests {
  @Test(arguments: Recipe.all) func frontEndComesUpAndGoes(recipe: Recipe) {
    var rig = Rig()
    for line in recipe.lines { rig.say(line, needReply: recipe.needReply) }
    #expect(rig.deeds == recipe.deeds)
    #expect(rig.replies.allSatisfy { $0.flags.rawValue == 5 })
  }

  /// With need_reply on every message, each gets exactly one reply, whether it has a reply of its own or not.
  @Test(arguments: [Recipe.cloudHypervisor, .libblkio, .qemu]) func oneReplyForEachMessage(recipe: Recipe) {
    var rig = Rig()
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    for line in recipe.lines {
      // Withdrawing REPLY_ACK is not part of this test.
      if case .protocolFeatures = line { continue }
      rig.say(line, needReply: true)
      let replies = rig.takeReplies()
      #expect(replies.count == 1, "\(line)")
      #expect(replies.first?.flags.rawValue == 5)
    }
  }
}
