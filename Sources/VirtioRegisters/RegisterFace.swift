/// A device as its register model sees it: the numbers and the closures that it needs, without the device itself.
public import VirtioCore

/// One device behind its registers. The numbers are fixed for the life of the model; values that can change at any moment are
/// fetched when a driver reads them.
public struct RegisterFace: Sendable {
  /// The virtio device ID (virtio 5): 2 for a block device, 0 for an empty slot.
  public var deviceID: UInt32
  /// Any number (virtio 4.2.2).
  public var vendorID: UInt32
  /// The features that the device offers.
  public var features: FeatureSet
  /// Features of the registers themselves that are not offered; only NOTIF_CONFIG_DATA can be withheld, because ANY_LAYOUT has
  /// to be offered to legacy drivers (virtio 6.3).
  public var withheld = FeatureSet()
  public var queueCount: Int
  /// A power of two, 1 … 32768; the same for each queue.
  public var maximumQueueSize: UInt16
  /// The pending interrupts. Bit 0: used buffer, bit 1: configuration change. Other bits are ignored.
  public var interruptStatus: @Sendable () -> UInt32
  public var configurationGeneration: @Sendable () -> UInt32
  /// `count` bytes from `offset` on; those beyond the end of the configuration space are zero.
  public var readConfiguration: @Sendable (_ offset: Int, _ count: Int) -> [UInt8]
  /// Whether the device can work with this subset of the features that it offers.
  public var accepts: @Sendable (FeatureSet) -> Bool

  /// Whether a notification is held back because its vector was masked (PCI's pending bits, see `InterruptRoute.masked`).
  public var isHeldBack: @Sendable (InterruptSource) -> Bool

  /// "VMMB", read as a little-endian number.
  public static let ourVendorID: UInt32 = 0x424d_4d56

  public init(
    deviceID: UInt32, vendorID: UInt32 = RegisterFace.ourVendorID, features: FeatureSet, queueCount: Int,
    maximumQueueSize: UInt16, interruptStatus: @escaping @Sendable () -> UInt32,
    configurationGeneration: @escaping @Sendable () -> UInt32,
    readConfiguration: @escaping @Sendable (_ offset: Int, _ count: Int) -> [UInt8],
    accepts: @escaping @Sendable (FeatureSet) -> Bool,
    isHeldBack: @escaping @Sendable (InterruptSource) -> Bool = { _ in false }
  ) {
    self.deviceID = deviceID
    self.vendorID = vendorID
    self.features = features
    self.queueCount = queueCount
    self.maximumQueueSize = maximumQueueSize
    self.interruptStatus = interruptStatus
    self.configurationGeneration = configurationGeneration
    self.readConfiguration = readConfiguration
    self.accepts = accepts
    self.isHeldBack = isHeldBack
  }

  /// The face of a device, whose pending interrupt bits are kept elsewhere.
  public init(
    _ device: any VirtioDevice, interruptStatus: @escaping @Sendable () -> UInt32,
    isHeldBack: @escaping @Sendable (InterruptSource) -> Bool = { _ in false }
  ) {
    self.init(
      deviceID: device.deviceID, features: device.features, queueCount: device.queueCount,
      maximumQueueSize: device.maximumQueueSize, interruptStatus: interruptStatus,
      configurationGeneration: { device.configurationGeneration },
      readConfiguration: { device.readConfiguration(at: $0, count: $1) }, accepts: { device.accepts($0) },
      isHeldBack: isHeldBack)
  }
}
