/// The device status field (virtio 2.1): how far a driver has come.

/// The bits of the status byte.
public struct DeviceStatus: OptionSet, Hashable, Sendable {
  /// The status byte (virtio 2.1). 0 after a reset.
  public var rawValue: UInt8
  /// Bits without a name are kept.
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// ACKNOWLEDGE: the guest has noticed the device.
  public static let acknowledge = DeviceStatus(rawValue: 1)
  /// DRIVER: the guest knows how to drive it.
  public static let driver = DeviceStatus(rawValue: 2)
  /// DRIVER_OK: the driver is set up, and the device may use buffers.
  public static let driverOK = DeviceStatus(rawValue: 4)
  /// FEATURES_OK: features are negotiated. The device leaves it clear if it refuses them.
  public static let featuresOK = DeviceStatus(rawValue: 8)
  /// SUSPEND: the device is suspended, and DRIVER_OK is clear meanwhile (virtio 3.4, since 1.4).
  public static let suspend = DeviceStatus(rawValue: 16)
  /// DEVICE_NEEDS_RESET: set by the device alone.
  public static let needsReset = DeviceStatus(rawValue: 64)
  /// FAILED: the driver has given up on the device.
  public static let failed = DeviceStatus(rawValue: 128)
}
