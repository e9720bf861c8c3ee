/// One vhost-user message: a header of 12 bytes, a payload, and the descriptors that were sent with it.
public import VirtioCore

/// The fixed header (vhost-user "Header").
public struct MessageHeader: Hashable, Sendable {
  /// Bytes of an encoded header.
  public static let size = 12
  /// Bytes of the largest payload that is accepted: a memory table with as many regions as one message can carry descriptors.
  public static let maximumPayload: UInt32 = 8 + 32 * UInt32(Message.maximumDescriptors)

  /// The flags word: bits 0–1 are the version.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let version1 = Flags(rawValue: 0x1)
    public static let reply = Flags(rawValue: 0x4)
    public static let needReply = Flags(rawValue: 0x8)

    /// The two version bits; only 1 is supported.
    public var version: UInt32 { rawValue & 0x3 }
  }

  /// A `FrontendRequest`, a `BackendRequest`, or an unknown code.
  public var request: UInt32
  public var flags: Flags
  /// Bytes of payload that follow.
  public var size: UInt32

  public init(request: UInt32, flags: Flags, size: UInt32) {
    self.request = request
    self.flags = flags
    self.size = size
  }

  /// - Parameter bytes: at least `MessageHeader.size` of them.
  init(decoding bytes: [UInt8]) {
    self.init(request: bytes.word32(at: 0), flags: Flags(rawValue: bytes.word32(at: 4)), size: bytes.word32(at: 8))
  }
}

/// A whole message. It owns its descriptors: they are closed with it.
public struct Message: Sendable {
  /// How many descriptors the kernel carries in one message (SCM_MAX_FD).
  public static let maximumDescriptors = 253

  public var request: UInt32
  public var flags: MessageHeader.Flags
  public var payload: [UInt8]
  public var descriptors: [OwnedDescriptor]

  public init(
    request: UInt32, flags: MessageHeader.Flags = .version1, payload: [UInt8] = [], descriptors: [OwnedDescriptor] = []
  ) {
    self.request = request
    self.flags = flags
    self.payload = payload
    self.descriptors = descriptors
  }

  public init(
    _ request: FrontendRequest, needReply: Bool = false, payload: [UInt8] = [], descriptors: [OwnedDescriptor] = []
  ) {
    self.init(
      request: request.rawValue, flags: needReply ? [.version1, .needReply] : .version1, payload: payload,
      descriptors: descriptors)
  }

  /// The answer to a request. Its flags are exactly 5: front-ends compare the whole word, so need_reply is never echoed.
  public init(replyTo request: UInt32, payload: [UInt8], descriptors: [OwnedDescriptor] = []) {
    self.init(request: request, flags: [.version1, .reply], payload: payload, descriptors: descriptors)
  }

  /// Header and payload as they go over the wire.
  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(MessageHeader.size + payload.count)
    bytes.append32(request)
    bytes.append32(flags.rawValue)
    bytes.append32(UInt32(payload.count))
    bytes += payload
    return bytes
  }
}
