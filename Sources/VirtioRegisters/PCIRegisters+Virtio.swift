/// The virtio structures behind BAR 4 (virtio 4.1.4.3 to 4.1.4.6).
internal import VirtioCore

extension PCIRegisters {
  /// Fields of the common configuration structure (virtio 4.1.4.3).
  private enum Common {
    static let deviceFeatureSelect = 0x00
    static let deviceFeature = 0x04
    static let driverFeatureSelect = 0x08
    static let driverFeature = 0x0c
    static let configurationVector = 0x10
    static let queueCount = 0x12
    static let status = 0x14
    static let generation = 0x15
    static let queueSelect = 0x16
    static let queueSize = 0x18
    static let queueVector = 0x1a
    static let queueEnable = 0x1c
    static let queueNotifyOffset = 0x1e
    static let queueDescriptor = 0x20
    static let queueDriver = 0x28
    static let queueDevice = 0x30
    static let queueNotifyData = 0x38
    static let queueReset = 0x3a
  }

  /// The part of BAR 4 at an offset, and the offset in it.
  private enum Region {
    case common(Int)
    case isr
    case device(Int)
    case notify(Int)
    case hole
  }

  private func region(_ offset: UInt32) -> Region {
    if offset < PCILayout.commonSize { return .common(Int(offset)) }
    if offset == PCILayout.isrOffset { return .isr }
    if offset >= PCILayout.deviceOffset, offset < PCILayout.deviceOffset + PCILayout.deviceSize {
      return .device(Int(offset - PCILayout.deviceOffset))
    }
    if offset >= PCILayout.notifyOffset, offset < PCILayout.notifyOffset + layout.notifySize {
      return .notify(Int(offset - PCILayout.notifyOffset))
    }
    return .hole
  }

  mutating func readVirtio(_ offset: UInt32, _ width: Int) -> (value: UInt64, effects: [Effect]) {
    switch region(offset) {
    case .common(let place):
      if (place..<place + width).contains(Common.generation) { moveGeneration() }
      return (AccessBytes.number(common.dropFirst(place).prefix(width)), [])
    case .isr: return readISR()
    case .device(let place): return (AccessBytes.number(device.readConfiguration(place, width).prefix(width)), [])
    case .notify, .hole: return (0, [])
    }
  }

  /// Reading clears the bits, and so lowers the line (virtio 4.1.4.5).
  mutating func readISR() -> (value: UInt64, effects: [Effect]) {
    let bits = isr
    return (UInt64(bits), bits == 0 ? [] : [.acknowledgeInterrupt(bits)])
  }

  private mutating func moveGeneration() {
    let now = device.configurationGeneration
    if now != generationSeen { generation &+= 1 }
    generationSeen = now
  }

  /// The structure as a driver reads it, 64 bytes. If the selected queue does not exist, its fields are zero, and it has no
  /// vector.
  private var common: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(PCILayout.commonSize))
    func set(_ offset: Int, _ value: some BinaryInteger, _ width: Int) {
      bytes.replaceSubrange(offset..<offset + width, with: AccessBytes.bytes(UInt64(truncatingIfNeeded: value), width: width))
    }
    set(Common.deviceFeatureSelect, device.deviceFeaturesSelect, 4)
    set(Common.deviceFeature, device.offeredWord(device.deviceFeaturesSelect), 4)
    set(Common.driverFeatureSelect, device.driverFeaturesSelect, 4)
    set(Common.driverFeature, DeviceRegisters.word(device.driverFeaturesSelect, of: device.negotiation.accepted), 4)
    set(Common.configurationVector, configurationVector, 2)
    set(Common.queueCount, min(device.queues.count, 0xffff), 2)
    set(Common.status, status.rawValue, 1)
    set(Common.generation, generation, 1)
    set(Common.queueSelect, device.queueSelect, 2)
    set(Common.queueVector, DeviceRegisters.noVector, 2)
    guard let index = device.selectedQueue else { return bytes }
    let queue = device.queues[index]
    set(Common.queueSize, queue.configuration.size, 2)
    set(Common.queueVector, queue.vector, 2)
    set(Common.queueEnable, queue.ready ? 1 : 0, 2)
    set(Common.queueNotifyOffset, index, 2)
    set(Common.queueDescriptor, queue.configuration.descriptorTable.rawValue, 8)
    set(Common.queueDriver, queue.configuration.availableRing.rawValue, 8)
    set(Common.queueDevice, queue.configuration.usedRing.rawValue, 8)
    // The field exists only with NOTIF_CONFIG_DATA (virtio 4.1.4.3).
    let hasData = device.negotiation.accepted.contains(.notificationConfigurationData)
    set(Common.queueNotifyData, hasData ? index : 0, 2)
    set(Common.queueReset, queue.resetting ? 1 : 0, 2)
    return bytes
  }

  mutating func writeVirtio(_ offset: UInt32, _ width: Int, _ value: UInt64) -> [Effect] {
    switch region(offset) {
    case .common(let place): return writeCommon(place, width, value)
    case .device(let place): return device.writeConfiguration(place, AccessBytes.bytes(value, width: width))
    case .notify(let place):
      // The address selects the queue (virtio 4.1.4.4), whatever the data is.
      guard place % Int(PCILayout.notifyMultiplier) == 0, width == 2 || width == 4 else { return [] }
      return device.notify(UInt32(place) / PCILayout.notifyMultiplier)
    case .isr, .hole: return []
    }
  }

  /// Fields are written in their own width, 64-bit ones as a whole or in halves (virtio 4.1.3.1); other writes have no effect.
  private mutating func writeCommon(_ offset: Int, _ width: Int, _ value: UInt64) -> [Effect] {
    let low = UInt32(truncatingIfNeeded: value)
    let half = UInt16(truncatingIfNeeded: value)
    switch (offset, width) {
    case (Common.deviceFeatureSelect, 4): device.deviceFeaturesSelect = low
    case (Common.driverFeatureSelect, 4): device.driverFeaturesSelect = low
    case (Common.driverFeature, 4): device.acceptWord(device.driverFeaturesSelect, low)
    case (Common.configurationVector, 2): return setConfigurationVector(half)
    case (Common.status, 1): return writeStatus(low & 0xff)
    case (Common.queueSelect, 2): device.queueSelect = UInt32(half)
    case (Common.queueSize, 2): device.setQueueSize(UInt32(half))
    case (Common.queueVector, 2): return setQueueVector(half)
    // A driver never writes 0 here (virtio 4.1.4.3.2): a queue is disabled by resetting the device, or with `queue_reset`.
    case (Common.queueEnable, 2): return half == 1 ? device.setQueueReady(true) : []
    case (Common.queueReset, 2): return half == 1 ? device.resetQueue() : []
    case (Common.queueDescriptor..<Common.queueNotifyData, 4), (Common.queueDescriptor..<Common.queueNotifyData, 8):
      guard offset % width == 0 else { return [] }
      let isUpper = offset % 8 == 4
      let part: WritableKeyPath<QueueConfiguration, GuestAddress> =
        offset < Common.queueDriver ? \.descriptorTable : offset < Common.queueDevice ? \.availableRing : \.usedRing
      device.setAddress(
        part, low: isUpper ? nil : low,
        high: isUpper ? low : width == 8 ? UInt32(truncatingIfNeeded: value >> 32) : nil)
    default: break
    }
    return []
  }

  /// A reset clears all vectors (virtio 4.1.5.1.2.1).
  mutating func writeStatus(_ value: UInt32, isLegacy: Bool = false) -> [Effect] {
    let effects = device.writeStatus(value, isLegacy: isLegacy)
    guard effects.contains(.reset) else { return effects }
    configurationVector = DeviceRegisters.noVector
    return effects + [.interruptRoutesChanged]
  }
}
