/// Back-ends that break the protocol in one place: this project's own, behind a relay that changes messages.
import VhostUser
import VirtioCore

/// What the relay does. It lives as long as its back-end, with one connection at a time.
struct WireMutant: Sendable {
  /// The relay's memory.
  struct Memory {
    var connections = 0
    /// How often each request was seen on this connection, including this time.
    var seen: [FrontendRequest: Int] = [:]
    var isDead = false
  }

  var check: String
  /// The request that is forwarded; `nil`: none, and it is acknowledged if needed.
  var request: @Sendable (Message, inout Memory) -> Message? = { message, _ in message }
  /// The replies that are sent back.
  var reply: @Sendable (Message, inout Memory) -> [Message] = { message, _ in [message] }
  /// Whether an invalid message ends it.
  var diesOfGarbage = false
}

extension WireMutant {
  private static func kind(_ message: Message) -> FrontendRequest? { FrontendRequest(rawValue: message.request) }

  /// Changes the replies to one request.
  static func answers(
    _ check: String, _ request: FrontendRequest, _ change: @escaping @Sendable (inout Message) -> Void
  ) -> WireMutant {
    WireMutant(
      check: check,
      reply: { message, _ in
        var copy = message
        if kind(message) == request { change(&copy) }
        return [copy]
      })
  }

  /// Changes or drops requests of one kind.
  static func alters(
    _ check: String, _ request: FrontendRequest, _ change: @escaping @Sendable (Message, Memory) -> Message?
  ) -> WireMutant {
    WireMutant(check: check, request: { message, memory in kind(message) == request ? change(message, memory) : message })
  }

  /// Ends when a request of one kind arrives, and never comes back.
  static func dies(
    _ check: String, of request: FrontendRequest, _ isSo: @escaping @Sendable (Message, Memory) -> Bool = { _, _ in true }
  ) -> WireMutant {
    WireMutant(
      check: check,
      request: { message, memory in
        if kind(message) == request, isSo(message, memory) { memory.isDead = true }
        return message
      })
  }

  static func number(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }
}

enum WireMutants {
  static let all: [WireMutant] = messages + rings + translations

  private static let messages: [WireMutant] = [
    .answers("reply-header", .getFeatures) { $0.flags = MessageHeader.Flags(rawValue: 0xd) },
    .answers("one-acknowledgement", .setOwner) { $0.payload = WireMutant.number(1) },
    .alters("no-acknowledgement", .setOwner) { message, memory in
      var copy = message
      if memory.seen[.setOwner] == 2 { copy.flags = [.version1, .needReply] }
      return copy
    },
    WireMutant(
      check: "own-reply-alone",
      reply: { message, _ in message.request == FrontendRequest.getQueueCount.rawValue ? [message, message] : [message] }),
    .answers("failure-is-told", .setVringSize) { $0.payload = WireMutant.number(0) },
    WireMutant(
      check: "greets-again",
      reply: { message, memory in
        var copy = message
        if message.request == 1, memory.seen[.getFeatures] == 3 { copy.payload = WireMutant.number(1 << 30) }
        return [copy]
      }),
    .answers("protocol-features", .getProtocolFeatures) { $0.payload[0] |= 1 << 4 },
    .answers("queue-number", .getQueueCount) { $0.payload = WireMutant.number(0) },
    .answers("configuration-reply", .getConfiguration) { $0.payload.removeLast() },
    .answers("configuration-256", .getConfiguration) { $0.payload = [] },
    .dies("configuration-too-much", of: .getConfiguration) { message, _ in message.payload.prefix(2) == [0xff, 0xff] },
    .answers("long-payload", .setVringBase) { $0.payload = WireMutant.number(1) },
    .dies("short-payload", of: .setVringAddress) { message, _ in message.payload.count < 40 },
    WireMutant(check: "another-version", diesOfGarbage: true),
    WireMutant(
      check: "unknown-request",
      request: { message, memory in
        if message.request == 200 { memory.isDead = true }
        return message
      }),
    .dies("no-such-queue", of: .setVringEnable) { message, _ in message.payload[0] == 0xff },
    .dies("wrong-regions", of: .setMemoryTable) { message, _ in message.payload[0] == 0 },
    .dies("wrong-addresses", of: .setVringAddress) { message, _ in message.payload[11] == 0xde },
    .dies("descriptors-nobody-wants", of: .setOwner) { message, _ in message.descriptors.count == 3 },
    .answers("slots", .getMaximumMemorySlots) { $0.payload = WireMutant.number(4) },
    .answers("table-again", .setMemoryTable) { $0.payload = WireMutant.number(1) },
    .answers("inflight-reply", .getInflight) { $0.descriptors = [] },
    WireMutant(check: "no-message-at-all", diesOfGarbage: true),
  ]

  private static let rings: [WireMutant] = [
    .alters("looks-at-start", .setVringEnable) { _, _ in nil },
    .alters("disabled-ring", .setVringEnable) { message, _ in message.payload[4] == 0 ? nil : message },
    .alters("enabled-again", .setVringEnable) { message, memory in memory.seen[.setVringEnable, default: 0] > 2 ? nil : message
    },
    .alters("without-bit-30", .setFeatures) { message, _ in
      var copy = message
      copy.payload[3] |= 0x40
      return copy
    },
    .dies("enabled-early", of: .setVringEnable) { _, memory in memory.seen[.setVringKick] == nil },
    .answers("base-is-the-next", .getVringBase) { $0.payload[4] &+= 1 },
    .answers("base-drains", .getVringBase) { $0.payload[4] &+= 3 },
    .alters("goes-on-at-the-base", .setVringBase, WireMutants.withoutBase),
    .alters("any-base", .setVringBase, WireMutants.withoutBase),
    .alters("stopped-is-left-alone", .getVringBase) { _, _ in nil },
    .dies("features-again", of: .setFeatures) { _, memory in memory.seen[.setVringKick] != nil },
    .alters("another-call", .setVringCall) { message, memory in memory.seen[.setVringCall, default: 0] > 1 ? nil : message },
    .dies("no-call", of: .setVringCall) { message, _ in message.descriptors.isEmpty },
    .alters("error-descriptor", .setVringError) { _, _ in nil },
    .alters("regions-one-by-one", .addMemoryRegion) { message, _ in message.payload[12] == 2 ? nil : message },
    .dies("inflight-region", of: .setInflight), .dies("inflight-garbage", of: .setInflight),
    .alters("reset-device", .resetDevice) { _, _ in nil },
    .alters("written-pages", .setFeatures) { message, _ in
      var copy = message
      copy.payload[3] &= 0xfb
      return copy
    },
    .answers("status-reads-back", .getStatus) { $0.payload[0] = 0x1f },
    WireMutant(
      check: "next-front-end",
      request: { message, memory in
        if memory.connections > 2 { memory.isDead = true }
        return message
      }),
    .dies("a-channel", of: .setBackendRequestDescriptor) { _, memory in memory.seen[.setBackendRequestDescriptor] == 2 },
    .alters("across-regions", .addMemoryRegion) { message, _ in
      // The second region has the first one's address.
      var copy = message
      if message.payload[8..<16].elementsEqual(WireMutant.number(2 << 20)) {
        copy.payload.replaceSubrange(32..<40, with: WireMutant.number(0))
      }
      return copy
    },
  ]

  private static let translations: [WireMutant] = [
    // One translation is extended to its whole neighbourhood.
    .alters("untranslated-waits", .iotlb) { message, _ in
      guard let said = TranslationMessage(decoding: message.payload), said.type == TranslationMessage.Kind.update.rawValue
      else { return message }
      var (wide, copy) = (said, message)
      wide.address &= ~0xfffff
      wide.size = 1 << 20
      wide.userAddress -= said.address - wide.address
      wide.permission = 3
      copy.payload = wide.bytes
      return copy
    },
    // The invalidation is acknowledged although the translation is still used.
    .alters("taken-back-is-left-alone", .iotlb) { message, _ in
      TranslationMessage(decoding: message.payload)?.type == TranslationMessage.Kind.invalidate.rawValue ? nil : message
    },
  ]

  private static let withoutBase: @Sendable (Message, WireMutant.Memory) -> Message? = { message, memory in
    var copy = message
    if memory.seen[.setVringBase, default: 0] > 1 { copy.payload.replaceSubrange(4..<8, with: [0, 0, 0, 0]) }
    return copy
  }
}
