/// The features of the protocol itself, negotiated beside the features of the device.
public import VirtioCore

/// Bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES. Only bits that are used here have a name; others are kept.
public struct ProtocolFeatures: OptionSet, Hashable, Sendable, CustomStringConvertible {
  public var rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public init(bit: Int) { self.rawValue = 1 << UInt64(bit) }

  public static let multiqueue = ProtocolFeatures(bit: 0)
  public static let sharedLog = ProtocolFeatures(bit: 1)
  public static let replyAck = ProtocolFeatures(bit: 3)
  public static let backendRequests = ProtocolFeatures(bit: 5)
  public static let configuration = ProtocolFeatures(bit: 9)
  /// In-flight records in memory that outlives the back-end.
  public static let inflight = ProtocolFeatures(bit: 12)
  public static let resetDevice = ProtocolFeatures(bit: 13)
  public static let memorySlots = ProtocolFeatures(bit: 15)
  public static let status = ProtocolFeatures(bit: 16)

  /// The features that this back-end offers. A front-end may acknowledge bits that it does not implement itself, so only
  /// features that work are listed here.
  public static let served: ProtocolFeatures = [
    .multiqueue, .sharedLog, .replyAck, .backendRequests, .configuration, .inflight, .resetDevice, .memorySlots, .status,
  ]

  /// Names for display, as the specification spells them.
  public static let names: [(bit: Int, name: String)] = [
    (0, "MQ"), (1, "LOG_SHMFD"), (2, "RARP"), (3, "REPLY_ACK"), (4, "MTU"), (5, "BACKEND_REQ"), (6, "CROSS_ENDIAN"),
    (7, "CRYPTO_SESSION"), (8, "PAGEFAULT"), (9, "CONFIG"), (10, "BACKEND_SEND_FD"), (11, "HOST_NOTIFIER"),
    (12, "INFLIGHT_SHMFD"), (13, "RESET_DEVICE"), (14, "INBAND_NOTIFICATIONS"), (15, "CONFIGURE_MEM_SLOTS"),
    (16, "STATUS"), (17, "XEN_MMAP"), (18, "SHARED_OBJECT"), (19, "DEVICE_STATE"),
  ]

  /// The names of the bits that are set, lowest first.
  public var nameList: [String] {
    (0..<64).filter { rawValue >> UInt64($0) & 1 == 1 }.map { bit in
      Self.names.first { $0.bit == bit }?.name ?? "bit \(bit)"
    }
  }

  public var description: String { "0x" + String(rawValue, radix: 16) }
}

extension FeatureSet {
  /// Bit 30 of the device's feature word, which is seen only by the two ends of the socket: protocol features exist.
  /// Acknowledging it makes every ring wait for SET_VRING_ENABLE.
  public static let protocolFeatures = FeatureSet(bit: 30)
  /// Bit 26, also only between the two ends: all writes to guest memory are to be logged (VHOST_F_LOG_ALL).
  public static let logAll = FeatureSet(bit: 26)
  /// The bits of the word that belong to the transport and not to the device.
  static let betweenEnds: FeatureSet = [.protocolFeatures, .logAll]
}
