/// The feature bits that a device offers and a driver accepts (virtio 2.2).

/// 64 feature bits. Device types add their own names in extensions; the names here are common to all device types.
public struct FeatureSet: OptionSet, Hashable, Sendable, CustomStringConvertible {
  /// Bit n is feature bit n.
  public var rawValue: UInt64
  /// Any combination of bits is accepted, including bits without a name.
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  /// The set with just this bit. - Parameter bit: 0 … 63.
  @inlinable public init(bit: Int) { self.rawValue = 1 << UInt64(bit) }

  /// Legacy: interrupt when the available ring runs dry, suppression ignored.
  public static let notifyOnEmpty = FeatureSet(bit: 24)
  /// Legacy: any framing; implied by `version1`.
  public static let anyLayout = FeatureSet(bit: 27)
  /// RING_INDIRECT_DESC: a descriptor may name a table of descriptors (virtio 2.6.5.3, 2.7.7).
  public static let indirectDescriptors = FeatureSet(bit: 28)
  /// RING_EVENT_IDX: each side says by index when it wants to be notified (virtio 2.6.7, 2.6.10).
  public static let eventIndex = FeatureSet(bit: 29)
  /// VERSION_1: the device is driven according to virtio 1.0 or later, not as a legacy one.
  public static let version1 = FeatureSet(bit: 32)
  /// ACCESS_PLATFORM: addresses are those of the platform, for example of an IOMMU.
  public static let accessPlatform = FeatureSet(bit: 33)
  /// RING_PACKED: queues use the packed format (virtio 2.7).
  public static let packedRing = FeatureSet(bit: 34)
  /// IN_ORDER: buffers are used in the order in which they were made available.
  public static let inOrder = FeatureSet(bit: 35)
  /// ORDER_PLATFORM: memory is ordered by the platform's rules for devices.
  public static let orderPlatform = FeatureSet(bit: 36)
  /// SR_IOV: the device has virtual functions.
  public static let singleRootIO = FeatureSet(bit: 37)
  /// NOTIFICATION_DATA: a kick says how far the ring is filled.
  public static let notificationData = FeatureSet(bit: 38)
  /// NOTIF_CONFIG_DATA: over PCI, a kick carries a value that the device gave in the queue's registers.
  public static let notificationConfigurationData = FeatureSet(bit: 39)
  /// RING_RESET: one queue can be reset by itself.
  public static let ringReset = FeatureSet(bit: 40)
  /// SUSPEND: the driver can suspend the whole device and resume it (virtio 1.4, 2.1 and 3.4).
  public static let suspend = FeatureSet(bit: 43)

  /// Names for display, as the specification spells them, of the bits that all device types share.
  public static let commonNames: [(bit: Int, name: String)] = [
    (24, "NOTIFY_ON_EMPTY"), (27, "ANY_LAYOUT"), (28, "RING_INDIRECT_DESC"), (29, "RING_EVENT_IDX"), (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"), (34, "RING_PACKED"), (35, "IN_ORDER"), (36, "ORDER_PLATFORM"), (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"), (39, "NOTIF_CONFIG_DATA"), (40, "RING_RESET"), (41, "ADMIN_VQ"), (43, "SUSPEND"),
  ]

  /// The bits that are set, lowest first.
  public var bits: [Int] { (0..<64).filter { rawValue >> UInt64($0) & 1 == 1 } }

  /// The bits in hexadecimal, with 0x in front.
  public var description: String { "0x" + String(rawValue, radix: 16) }
}
