/// The driver's reads and writes. No access can trap: an invalid read returns zero, and an invalid write has no effect.
internal import VirtioCore

extension MMIORegisters {
  /// A read of `width` bytes (virtio 4.2.2.2). Control registers answer aligned 32-bit reads, the configuration space reads of
  /// 1, 2, 4 or 8 bytes at any offset; everything else, write-only registers included, reads as zero.
  public func read(offset: UInt32, width: Int) -> UInt64 {
    if offset >= Self.configurationOffset {
      guard AccessBytes.widths.contains(width) else { return 0 }
      return AccessBytes.number(device.readConfiguration(Int(offset - Self.configurationOffset), width).prefix(width))
    }
    guard width == 4, let register = Register(rawValue: offset) else { return 0 }
    return UInt64(read(register))
  }

  private func read(_ register: Register) -> UInt32 {
    switch register {
    case .magicValue: Self.magic
    case .version: 2
    case .deviceID: device.face.deviceID
    case .vendorID: device.face.vendorID
    case .deviceFeatures: device.offeredWord(device.deviceFeaturesSelect)
    case .queueSizeMaximum: device.maximumSize
    case .queueReady: device.selectedQueue.map { device.queues[$0].ready ? 1 : 0 } ?? 0
    case .queueReset: device.selectedQueue.map { device.queues[$0].resetting ? 1 : 0 } ?? 0
    case .interruptStatus: device.face.interruptStatus() & DeviceRegisters.interruptBits
    case .status: UInt32(status.rawValue)
    // A region that does not exist has length and base all ones (virtio 4.2.2).
    case .sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh: 0xffff_ffff
    case .configurationGeneration: device.configurationGeneration
    case .deviceFeaturesSelect, .driverFeatures, .driverFeaturesSelect, .queueSelect, .queueSize, .queueNotify,
      .interruptAcknowledge, .queueDescriptorLow, .queueDescriptorHigh, .queueDriverLow, .queueDriverHigh,
      .queueDeviceLow, .queueDeviceHigh, .sharedMemorySelect:
      0
    }
  }

  /// A write of the low `width` bytes of `value`. Control registers accept aligned 32-bit writes, the configuration space
  /// writes of 1, 2, 4 or 8 bytes at any offset; everything else has no effect.
  public mutating func write(offset: UInt32, width: Int, value: UInt64) -> [Effect] {
    if offset >= Self.configurationOffset {
      guard AccessBytes.widths.contains(width) else { return [] }
      let bytes = AccessBytes.bytes(value, width: width)
      return device.writeConfiguration(Int(offset - Self.configurationOffset), bytes)
    }
    guard width == 4, let register = Register(rawValue: offset) else { return [] }
    return write(register, UInt32(truncatingIfNeeded: value))
  }

  private mutating func write(_ register: Register, _ value: UInt32) -> [Effect] {
    switch register {
    case .deviceFeaturesSelect: device.deviceFeaturesSelect = value
    case .driverFeaturesSelect: device.driverFeaturesSelect = value
    case .driverFeatures: device.acceptWord(device.driverFeaturesSelect, value)
    case .queueSelect: device.queueSelect = value
    case .queueSize: device.setQueueSize(value)
    case .queueDescriptorLow: device.setAddress(\.descriptorTable, low: value)
    case .queueDescriptorHigh: device.setAddress(\.descriptorTable, high: value)
    case .queueDriverLow: device.setAddress(\.availableRing, low: value)
    case .queueDriverHigh: device.setAddress(\.availableRing, high: value)
    case .queueDeviceLow: device.setAddress(\.usedRing, low: value)
    case .queueDeviceHigh: device.setAddress(\.usedRing, high: value)
    case .queueReady: return device.setQueueReady(value != 0)
    case .queueReset: return value == 1 ? device.resetQueue() : []
    case .queueNotify: return device.notify(value)
    case .interruptAcknowledge:
      let bits = value & DeviceRegisters.interruptBits
      return bits == 0 ? [] : [.acknowledgeInterrupt(bits)]
    case .status: return device.writeStatus(value)
    // No shared memory region exists, so there is nothing to select.
    case .sharedMemorySelect: break
    case .magicValue, .version, .deviceID, .vendorID, .deviceFeatures, .queueSizeMaximum, .interruptStatus,
      .sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh,
      .configurationGeneration:
      break
    }
    return []
  }
}
