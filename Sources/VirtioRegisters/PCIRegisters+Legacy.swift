/// The legacy block behind BAR 0 (virtio 4.1.4.8). Its numbers are little-endian; the configuration space after it is in the
/// guest's byte order, which is this machine's.
internal import VirtioCore

extension PCIRegisters {
  private enum Legacy {
    static let hostFeatures: UInt32 = 0x00
    static let guestFeatures: UInt32 = 0x04
    static let queuePageNumber: UInt32 = 0x08
    static let queueSize: UInt32 = 0x0c
    static let queueSelect: UInt32 = 0x0e
    static let queueNotify: UInt32 = 0x10
    static let status: UInt32 = 0x12
    static let isr: UInt32 = 0x13
    static let configurationVector: UInt32 = 0x14
    static let queueVector: UInt32 = 0x16
  }

  /// Bytes of a page, the unit of a queue's address (virtio 4.1.5.1.3.1).
  static let legacyPageSize: UInt32 = 4096

  /// Two vector fields come before the configuration space while MSI-X is enabled.
  private var legacyConfiguration: UInt32 { space.isMSIXEnabled ? 0x18 : 0x14 }

  /// Registers answer accesses of their own width, the configuration space those of any width.
  mutating func readLegacy(_ offset: UInt32, _ width: Int) -> (value: UInt64, effects: [Effect]) {
    guard offset < legacyConfiguration else {
      let place = Int(offset - legacyConfiguration)
      return (AccessBytes.number(device.readConfiguration(place, width).prefix(width)), [])
    }
    let value: UInt64
    switch (offset, width) {
    case (Legacy.hostFeatures, 4): value = UInt64(device.offeredWord(0, isLegacy: true))
    case (Legacy.guestFeatures, 4): value = UInt64(DeviceRegisters.word(0, of: device.negotiation.accepted))
    case (Legacy.queuePageNumber, 4): value = UInt64(device.pageNumber(pageSize: Self.legacyPageSize))
    case (Legacy.queueSize, 2): value = UInt64(device.maximumSize)
    case (Legacy.queueSelect, 2): value = UInt64(device.queueSelect)
    case (Legacy.status, 1): value = UInt64(status.rawValue)
    case (Legacy.isr, 1): return readISR()
    case (Legacy.configurationVector, 2): value = UInt64(configurationVector)
    case (Legacy.queueVector, 2):
      value = UInt64(device.selectedQueue.map { device.queues[$0].vector } ?? DeviceRegisters.noVector)
    default: value = 0
    }
    return (value, [])
  }

  mutating func writeLegacy(_ offset: UInt32, _ width: Int, _ value: UInt64) -> [Effect] {
    guard offset < legacyConfiguration else {
      let place = Int(offset - legacyConfiguration)
      return device.writeConfiguration(place, AccessBytes.bytes(value, width: width))
    }
    let low = UInt32(truncatingIfNeeded: value)
    let half = UInt16(truncatingIfNeeded: value)
    switch (offset, width) {
    case (Legacy.guestFeatures, 4): device.acceptLegacy(low)
    case (Legacy.queuePageNumber, 4):
      // A queue has the size that the device gives (virtio 2.6.2), even if a modern driver has chosen another one before.
      if let queue = device.selectedQueue, !device.queues[queue].ready { device.setQueueSize(device.maximumSize) }
      return device.setPageNumber(low, pageSize: Self.legacyPageSize)
    case (Legacy.queueSelect, 2): device.queueSelect = UInt32(half)
    case (Legacy.queueNotify, 2): return device.notify(UInt32(half), isLegacy: true)
    case (Legacy.status, 1):
      // Linux before 2.6.34 did not enable bus mastering.
      var effects: [Effect] = []
      if low & UInt32(DeviceStatus.driverOK.rawValue) != 0, !device.isMaster {
        space.write(PCIConfigurationSpace.command, [space.bytes[PCIConfigurationSpace.command] | 4])
        effects = device.setMaster(true)
      }
      return effects + writeStatus(low & 0xff, isLegacy: true)
    case (Legacy.configurationVector, 2): return setConfigurationVector(half)
    case (Legacy.queueVector, 2): return setQueueVector(half)
    default: break
    }
    return []
  }
}
