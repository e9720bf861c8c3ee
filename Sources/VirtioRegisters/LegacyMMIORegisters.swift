/// virtio-mmio version 1 (virtio 4.2.4) as a value: the interface for drivers older than version 1.0 of the specification.
internal import VirtioCore

/// The legacy register window of one device. Its numbers are in the guest's byte order, which is this machine's: little-endian.
/// A queue is one region of memory, given by its page number.
public struct LegacyMMIORegisters: RegisterWindow {
  /// The offsets that have a register (virtio 4.2.4, table 4.3).
  public enum Register: UInt32, CaseIterable, Sendable {
    case magicValue = 0x000
    case version = 0x004
    case deviceID = 0x008
    case vendorID = 0x00c
    case hostFeatures = 0x010
    case hostFeaturesSelect = 0x014
    case guestFeatures = 0x020
    case guestFeaturesSelect = 0x024
    case guestPageSize = 0x028
    case queueSelect = 0x030
    case queueSizeMaximum = 0x034
    case queueSize = 0x038
    case queueAlign = 0x03c
    case queuePageNumber = 0x040
    case queueNotify = 0x050
    case interruptStatus = 0x060
    case interruptAcknowledge = 0x064
    case status = 0x070
  }

  public var device: DeviceRegisters
  /// Bytes, a power of two; 0 until the driver has written it.
  private var guestPageSize: UInt32 = 0

  public init(face: RegisterFace) { device = DeviceRegisters(face: face, interface: .mmioLegacy) }

  /// The interrupt line: level, asserted while any bit is pending.
  public var isInterruptAsserted: Bool { device.face.interruptStatus() & DeviceRegisters.interruptBits != 0 }

  /// A read of `width` bytes. Registers answer aligned 32-bit reads, the configuration space reads of 1, 2, 4 or 8 bytes at any
  /// offset; everything else, write-only registers included, reads as zero.
  public func read(offset: UInt32, width: Int) -> UInt64 {
    if offset >= MMIORegisters.configurationOffset {
      guard AccessBytes.widths.contains(width) else { return 0 }
      let place = Int(offset - MMIORegisters.configurationOffset)
      return AccessBytes.number(device.readConfiguration(place, width).prefix(width))
    }
    guard width == 4, let register = Register(rawValue: offset) else { return 0 }
    return UInt64(read(register))
  }

  private func read(_ register: Register) -> UInt32 {
    switch register {
    case .magicValue: MMIORegisters.magic
    case .version: 1
    case .deviceID: device.face.deviceID
    case .vendorID: device.face.vendorID
    case .hostFeatures: device.offeredWord(device.deviceFeaturesSelect, isLegacy: true)
    case .queueSizeMaximum: device.maximumSize
    case .queuePageNumber: device.pageNumber(pageSize: guestPageSize)
    case .interruptStatus: device.face.interruptStatus() & DeviceRegisters.interruptBits
    case .status: UInt32(status.rawValue)
    case .hostFeaturesSelect, .guestFeatures, .guestFeaturesSelect, .guestPageSize, .queueSelect, .queueSize, .queueAlign,
      .queueNotify, .interruptAcknowledge:
      0
    }
  }

  /// A write of the low `width` bytes of `value`; it has no effect where there is no register.
  public mutating func write(offset: UInt32, width: Int, value: UInt64) -> [Effect] {
    if offset >= MMIORegisters.configurationOffset {
      guard AccessBytes.widths.contains(width) else { return [] }
      let bytes = AccessBytes.bytes(value, width: width)
      return device.writeConfiguration(Int(offset - MMIORegisters.configurationOffset), bytes)
    }
    guard width == 4, let register = Register(rawValue: offset) else { return [] }
    return write(register, UInt32(truncatingIfNeeded: value))
  }

  private mutating func write(_ register: Register, _ value: UInt32) -> [Effect] {
    switch register {
    case .hostFeaturesSelect: device.deviceFeaturesSelect = value
    case .guestFeaturesSelect: device.driverFeaturesSelect = value
    // There are no other words: a driver for both versions writes zero to the next one.
    case .guestFeatures: if device.driverFeaturesSelect == 0 { device.acceptLegacy(value) }
    case .guestPageSize: setPageSize(value)
    case .queueSelect: device.queueSelect = value
    case .queueSize: device.setQueueSize(value)
    case .queueAlign: device.setAlignment(value)
    case .queuePageNumber: return device.setPageNumber(value, pageSize: guestPageSize)
    case .queueNotify: return device.notify(value, isLegacy: true)
    case .interruptAcknowledge:
      let bits = value & DeviceRegisters.interruptBits
      return bits == 0 ? [] : [.acknowledgeInterrupt(bits)]
    case .status:
      let effects = device.writeStatus(value, isLegacy: true)
      if effects.contains(.reset) { guestPageSize = 0 }
      return effects
    case .magicValue, .version, .deviceID, .vendorID, .hostFeatures, .queueSizeMaximum, .interruptStatus: break
    }
    return []
  }

  /// Ignored once a queue is ready, so that the page numbers of queues in use keep their meaning.
  private mutating func setPageSize(_ value: UInt32) {
    guard value > 0, value & (value - 1) == 0, !device.queues.contains(where: { $0.ready }) else { return }
    guestPageSize = value
  }

  /// The state as a plain record.
  public var image: RegisterImage {
    var image = device.image
    image.guestPageSize = guestPageSize
    return image
  }

  /// Registers in the state of a record, and the effects that bring a device to that state.
  ///
  /// - Parameter image: any record; it is checked in the same way as a driver's writes.
  public static func restore(
    _ image: RegisterImage, face: RegisterFace
  ) -> (registers: LegacyMMIORegisters, effects: [Effect], restoration: Restoration) {
    var registers = LegacyMMIORegisters(face: face)
    registers.setPageSize(image.guestPageSize)
    let (effects, restoration) = registers.device.replay(image, legacyPageSize: registers.guestPageSize)
    return (registers, effects, restoration)
  }
}
