/// The device status field (virtio 2.1): how far a driver has come.

/// The bits of the status byte.
public struct DeviceStatus: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let acknowledge = DeviceStatus(rawValue: 1)
  public static let driver = DeviceStatus(rawValue: 2)
  public static let driverOK = DeviceStatus(rawValue: 4)
  public static let featuresOK = DeviceStatus(rawValue: 8)
  /// The device is suspended, and DRIVER_OK is clear meanwhile (virtio 3.4, since 1.4).
  public static let suspend = DeviceStatus(rawValue: 16)
  /// Set by the device alone.
  public static let needsReset = DeviceStatus(rawValue: 64)
  public static let failed = DeviceStatus(rawValue: 128)
}
