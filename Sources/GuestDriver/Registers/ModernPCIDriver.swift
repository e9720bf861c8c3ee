/// virtio-pci as a driver of version 1 uses it (virtio 4.1.4, 4.1.5).
internal import VirtioCore
internal import VirtioRegisters

final class ModernPCIDriver: RegisterDriver {
  let name = "virtio-pci"
  private let function: PCIFunction
  private let common: PCIFunction.Structure
  private let device: PCIFunction.Structure
  let notifyPlace: (offset: UInt32, stride: UInt32)

  init(_ function: PCIFunction) throws(DriverError) {
    self.function = function
    common = try function.structure(1, "common configuration", length: 0x38)
    let notify = try function.structure(2, "notification structure", length: 2)
    let multiplier = UInt32(try function.read(.configuration, notify.capability + 16, 4))
    // A queue's `queue_notify_off` is its number here; a device with other offsets is kicked through doorbells.
    notifyPlace = (RegisterModel.offset(.bar(Int(notify.bar)), notify.offset), multiplier)
    _ = try function.structure(3, "ISR", length: 1)
    device = try function.structure(4, "device configuration", length: 8)
  }

  private func read(_ offset: UInt32, _ width: Int) throws(DriverError) -> UInt64 {
    try function.read(.bar(Int(common.bar)), common.offset + offset, width)
  }

  private func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws(DriverError) {
    try function.write(.bar(Int(common.bar)), common.offset + offset, width, value)
  }

  /// A transitional function has it in the subsystem ID (virtio 4.1.2.3).
  func deviceID() throws(DriverError) -> UInt32 {
    if function.deviceID >= 0x1040 { return UInt32(function.deviceID) - 0x1040 }
    return UInt32(try function.read(.configuration, 0x2e, 2))
  }

  func readConfiguration(_ offset: UInt32, width: Int) throws(DriverError) -> UInt64 {
    guard offset < device.length, device.length - offset >= UInt32(width) else { return 0 }
    return try function.read(.bar(Int(device.bar)), device.offset + offset, width)
  }

  func writeConfiguration(_ offset: UInt32, _ byte: UInt8) throws(DriverError) {
    guard offset < device.length else { return }
    try function.write(.bar(Int(device.bar)), device.offset + offset, 1, UInt64(byte))
  }

  func configurationGeneration() throws(DriverError) -> UInt32 { UInt32(try read(0x15, 1)) }
  func status() throws(DriverError) -> UInt8 { UInt8(truncatingIfNeeded: try read(0x14, 1)) }
  func setStatus(_ status: UInt8) throws(DriverError) { try write(0x14, 1, UInt64(status)) }

  func offeredFeatures() throws(DriverError) -> FeatureSet {
    var bits: UInt64 = 0
    for word in 0..<2 as Range<UInt64> {
      try write(0x00, 4, word)
      bits |= try read(0x04, 4) << (32 * word)
    }
    return FeatureSet(rawValue: bits)
  }

  func acceptFeatures(_ features: FeatureSet) throws(DriverError) {
    for word in 0..<2 as Range<UInt64> {
      try write(0x08, 4, word)
      try write(0x0c, 4, features.rawValue >> (32 * word) & 0xffff_ffff)
    }
  }

  func queueCount(limit: Int) throws(DriverError) -> Int { min(limit, Int(try read(0x12, 2))) }

  func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16 {
    try write(0x16, 2, UInt64(UInt16(clamping: queue)))
    return UInt16(truncatingIfNeeded: try read(0x18, 2))
  }

  /// Vector 0 is for the configuration, the others for queues. Each mapping is read back (virtio 4.1.5.1.2.2).
  func prepareQueues() throws(DriverError) {
    guard function.vectors > 0 else { return }
    try write(0x10, 2, 0)
    if try read(0x10, 2) != 0 { try function.closeVectors() }
  }

  func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try write(0x16, 2, UInt64(queue))
    guard try read(0x1c, 2) == 0 else { throw .refused("queue \(queue) is in use already") }
    try write(0x18, 2, UInt64(configuration.size))
    for (offset, address) in [
      (0x20 as UInt32, configuration.descriptorTable), (0x28, configuration.availableRing), (0x30, configuration.usedRing),
    ] {
      try write(offset, 4, address.rawValue & 0xffff_ffff)
      try write(offset + 4, 4, address.rawValue >> 32)
    }
    if function.vectors > 0 {
      let vector = UInt64(min(queue + 1, function.vectors - 1))
      try write(0x1a, 2, vector)
      guard try read(0x1a, 2) == vector else { throw .refused("queue \(queue) gets no MSI-X vector") }
    }
    try write(0x1c, 2, 1)
    guard try read(0x1c, 2) == 1 else { throw .refused("queue \(queue) was not taken") }
  }

  /// Only `queue_reset` takes one queue down (virtio 4.1.4.3.2): without it, the device has to be reset as a whole.
  func disableQueue(_ queue: Int) throws(DriverError) {
    try write(0x16, 2, UInt64(queue))
    guard try read(0x1c, 2) != 0 else { return }
    try resetQueue(queue)
  }

  func resetQueue(_ queue: Int) throws(DriverError) {
    try write(0x16, 2, UInt64(queue))
    try write(0x3a, 2, 1)
    try awaitReset(of: queue) { () throws(DriverError) in try read(0x3a, 2) }
    guard try read(0x1c, 2) == 0 else {
      throw .refused("queue \(queue) does not stop: a PCI function without RING_RESET is reset as a whole")
    }
  }
}

/// The legacy block in the I/O BAR (virtio 4.1.4.8).
final class LegacyPCIDriver: RegisterDriver {
  let name = "legacy virtio-pci"
  let ringShape: RingShape? = .legacy(alignment: 4096)
  let hasFixedQueueSize = true
  private let function: PCIFunction

  init(_ function: PCIFunction) throws(DriverError) {
    self.function = function
    guard (0x1000...0x103f).contains(function.deviceID) else {
      throw .refused("PCI device 0x\(String(function.deviceID, radix: 16)) has no legacy interface")
    }
  }

  private func read(_ offset: UInt32, _ width: Int) throws(DriverError) -> UInt64 {
    try function.read(.bar(0), offset, width)
  }

  private func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws(DriverError) {
    try function.write(.bar(0), offset, width, value)
  }

  private var configuration: UInt32 { function.vectors > 0 ? 0x18 : 0x14 }

  func deviceID() throws(DriverError) -> UInt32 { UInt32(try function.read(.configuration, 0x2e, 2)) }

  func readConfiguration(_ offset: UInt32, width: Int) throws(DriverError) -> UInt64 {
    guard offset < 0x100 else { return 0 }
    return try read(configuration + offset, width)
  }

  func writeConfiguration(_ offset: UInt32, _ byte: UInt8) throws(DriverError) {
    guard offset < 0x100 else { return }
    try write(configuration + offset, 1, UInt64(byte))
  }

  /// There is no such counter.
  func configurationGeneration() throws(DriverError) -> UInt32 { 0 }
  func status() throws(DriverError) -> UInt8 { UInt8(truncatingIfNeeded: try read(0x12, 1)) }
  func setStatus(_ status: UInt8) throws(DriverError) { try write(0x12, 1, UInt64(status)) }
  func offeredFeatures() throws(DriverError) -> FeatureSet { FeatureSet(rawValue: try read(0x00, 4)) }
  func acceptFeatures(_ features: FeatureSet) throws(DriverError) { try write(0x04, 4, features.rawValue & 0xffff_ffff) }

  func queueCount(limit: Int) throws(DriverError) -> Int {
    var count = 0
    while count < limit, try maximumQueueSize(count) > 0 { count += 1 }
    return count
  }

  func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16 {
    try write(0x0e, 2, UInt64(UInt16(clamping: queue)))
    return UInt16(truncatingIfNeeded: try read(0x0c, 2))
  }

  func prepareQueues() throws(DriverError) {
    guard function.vectors > 0 else { return }
    try write(0x14, 2, 0)
    if try read(0x14, 2) != 0 { try function.closeVectors() }
  }

  func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try write(0x0e, 2, UInt64(queue))
    guard try read(0x08, 4) == 0 else { throw .refused("queue \(queue) is in use already") }
    if function.vectors > 0 {
      let vector = UInt64(min(queue + 1, function.vectors - 1))
      try write(0x16, 2, vector)
      guard try read(0x16, 2) == vector else { throw .refused("queue \(queue) gets no MSI-X vector") }
    }
    let page = configuration.descriptorTable.rawValue / 4096 & 0xffff_ffff
    try write(0x08, 4, page)
    guard try read(0x08, 4) == page else { throw .refused("queue \(queue) was not taken") }
  }

  /// The register has 16 bits, so a kick carries no data.
  let notifyPlace: (offset: UInt32, stride: UInt32) = (RegisterModel.offset(.bar(0), 0x10), 0)

  func resetQueue(_ queue: Int) throws(DriverError) { throw .badRequest("a legacy device has no RING_RESET") }

  func disableQueue(_ queue: Int) throws(DriverError) {
    try write(0x0e, 2, UInt64(queue))
    try write(0x08, 4, 0)
    guard try read(0x08, 4) == 0 else { throw .refused("queue \(queue) does not stop") }
  }
}
