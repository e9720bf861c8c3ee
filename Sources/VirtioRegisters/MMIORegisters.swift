/// virtio-mmio version 2 (virtio 4.2.2) as a value: a register access goes in, a number or a list of effects comes out.

/// The register window of one device. It has no side effects itself: its owner executes the returned effects, in order, before
/// it answers the driver's write, so that a value read back afterwards (QueueReady, Status) shows that the work is done.
public struct MMIORegisters: RegisterWindow {
  /// The offsets that have a register (virtio 4.2.2, table 4.1).
  public enum Register: UInt32, CaseIterable, Sendable {
    case magicValue = 0x000
    case version = 0x004
    case deviceID = 0x008
    case vendorID = 0x00c
    case deviceFeatures = 0x010
    case deviceFeaturesSelect = 0x014
    case driverFeatures = 0x020
    case driverFeaturesSelect = 0x024
    case queueSelect = 0x030
    case queueSizeMaximum = 0x034
    case queueSize = 0x038
    case queueReady = 0x044
    case queueNotify = 0x050
    case interruptStatus = 0x060
    case interruptAcknowledge = 0x064
    case status = 0x070
    case queueDescriptorLow = 0x080
    case queueDescriptorHigh = 0x084
    case queueDriverLow = 0x090
    case queueDriverHigh = 0x094
    case queueDeviceLow = 0x0a0
    case queueDeviceHigh = 0x0a4
    case sharedMemorySelect = 0x0ac
    case sharedMemoryLengthLow = 0x0b0
    case sharedMemoryLengthHigh = 0x0b4
    case sharedMemoryBaseLow = 0x0b8
    case sharedMemoryBaseHigh = 0x0bc
    case queueReset = 0x0c0
    case configurationGeneration = 0x0fc
  }

  /// Where the device-specific configuration space begins.
  public static let configurationOffset: UInt32 = 0x100
  /// "virt", read as a little-endian number.
  public static let magic: UInt32 = 0x7472_6976
  /// Pending interrupt bits (virtio 4.2.2): a buffer was used.
  public static let usedBufferInterrupt: UInt32 = 1
  /// Pending interrupt bits: the configuration changed, or the device needs a reset.
  public static let configurationInterrupt: UInt32 = 2

  public var device: DeviceRegisters

  public init(face: RegisterFace) { device = DeviceRegisters(face: face, interface: .mmio) }

  /// The interrupt line: level, asserted while any bit is pending (virtio 4.2.3.4).
  public var isInterruptAsserted: Bool { device.face.interruptStatus() & DeviceRegisters.interruptBits != 0 }

  /// The state as a plain record. A queue that is being reset is recorded as not ready: that is what its driver waits for.
  public var image: RegisterImage { device.image }

  /// Registers in the state of a record, and the effects that bring a device to that state.
  ///
  /// - Parameter image: any record; it is checked in the same way as a driver's writes.
  public static func restore(
    _ image: RegisterImage, face: RegisterFace
  ) -> (registers: MMIORegisters, effects: [Effect], restoration: Restoration) {
    var registers = MMIORegisters(face: face)
    let (effects, restoration) = registers.device.replay(image)
    return (registers, effects, restoration)
  }
}
