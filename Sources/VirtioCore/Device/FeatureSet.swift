/// The feature bits that a device offers and a driver accepts (virtio 2.2).

/// 64 feature bits. Device types add their own names in extensions; the names here belong to every device.
public struct FeatureSet: OptionSet, Hashable, Sendable, CustomStringConvertible {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  /// The set with just this bit. - Parameter bit: 0 … 63.
  @inlinable public init(bit: Int) { self.rawValue = 1 << UInt64(bit) }

  /// Legacy: interrupt when the available ring runs dry, suppression ignored.
  public static let notifyOnEmpty = FeatureSet(bit: 24)
  /// Legacy: any framing; implied by `version1`.
  public static let anyLayout = FeatureSet(bit: 27)
  public static let indirectDescriptors = FeatureSet(bit: 28)
  public static let eventIndex = FeatureSet(bit: 29)
  public static let version1 = FeatureSet(bit: 32)
  public static let accessPlatform = FeatureSet(bit: 33)
  public static let packedRing = FeatureSet(bit: 34)
  public static let inOrder = FeatureSet(bit: 35)
  public static let orderPlatform = FeatureSet(bit: 36)
  public static let singleRootIO = FeatureSet(bit: 37)
  public static let notificationData = FeatureSet(bit: 38)
  public static let ringReset = FeatureSet(bit: 40)
  public static let suspend = FeatureSet(bit: 43)

  /// Names for readers, as the specification spells them, for the bits that every device shares.
  public static let commonNames: [(bit: Int, name: String)] = [
    (24, "NOTIFY_ON_EMPTY"), (27, "ANY_LAYOUT"), (28, "RING_INDIRECT_DESC"), (29, "RING_EVENT_IDX"), (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"), (34, "RING_PACKED"), (35, "IN_ORDER"), (36, "ORDER_PLATFORM"), (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"), (39, "NOTIF_CONFIG_DATA"), (40, "RING_RESET"), (41, "ADMIN_VQ"), (43, "SUSPEND"),
  ]

  /// The bits that are set, lowest first.
  public var bits: [Int] { (0..<64).filter { rawValue >> UInt64($0) & 1 == 1 } }

  public var description: String { "0x" + String(rawValue, radix: 16) }
}
