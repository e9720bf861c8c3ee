/// virtio-mmio as a driver uses it: version 2 (virtio 4.2.2) and version 1 (virtio 4.2.4).
internal import VirtioCore

private typealias MMIO = MemoryFileTransport.Register

extension MemoryFileTransport {
  /// The registers that a driver of virtio-mmio needs; both versions have them at the same places.
  enum Register {
    static let deviceID: UInt32 = 0x008
    static let deviceFeatures: UInt32 = 0x010
    static let deviceFeaturesSelect: UInt32 = 0x014
    static let driverFeatures: UInt32 = 0x020
    static let driverFeaturesSelect: UInt32 = 0x024
    static let guestPageSize: UInt32 = 0x028
    static let queueSelect: UInt32 = 0x030
    static let queueSizeMaximum: UInt32 = 0x034
    static let queueSize: UInt32 = 0x038
    static let queueAlign: UInt32 = 0x03c
    static let queuePageNumber: UInt32 = 0x040
    static let queueReady: UInt32 = 0x044
    static let queueNotify: UInt32 = 0x050
    static let status: UInt32 = 0x070
    static let queueTable: UInt32 = 0x080
    static let queueAvailable: UInt32 = 0x090
    static let queueUsed: UInt32 = 0x0a0
    static let queueReset: UInt32 = 0x0c0
    static let configurationGeneration: UInt32 = 0x0fc
    static let configuration: UInt32 = 0x100
  }
}

class MMIODriver: RegisterDriver {
  private let access: RegisterAccess
  var name: String { "virtio-mmio version 2" }
  var ringShape: RingShape? { nil }

  init(_ access: RegisterAccess) { self.access = access }

  fileprivate func read(_ register: UInt32) throws(DriverError) -> UInt32 {
    UInt32(truncatingIfNeeded: try access.read(register, 4))
  }

  fileprivate func write(_ register: UInt32, _ value: UInt32) throws(DriverError) {
    try access.write(register, 4, UInt64(value))
  }

  func deviceID() throws(DriverError) -> UInt32 { try read(MMIO.deviceID) }

  func readConfiguration(_ offset: UInt32, width: Int) throws(DriverError) -> UInt64 {
    try access.read(MMIO.configuration &+ offset, width)
  }

  func writeConfiguration(_ offset: UInt32, _ byte: UInt8) throws(DriverError) {
    try access.write(MMIO.configuration &+ offset, 1, UInt64(byte))
  }

  func configurationGeneration() throws(DriverError) -> UInt32 { try read(MMIO.configurationGeneration) }
  func status() throws(DriverError) -> UInt8 { UInt8(truncatingIfNeeded: try read(MMIO.status)) }
  func setStatus(_ status: UInt8) throws(DriverError) { try write(MMIO.status, UInt32(status)) }

  func offeredFeatures() throws(DriverError) -> FeatureSet {
    var bits: UInt64 = 0
    for word in 0..<2 {
      try write(MMIO.deviceFeaturesSelect, UInt32(word))
      bits |= UInt64(try read(MMIO.deviceFeatures)) << UInt64(32 * word)
    }
    return FeatureSet(rawValue: bits)
  }

  func acceptFeatures(_ features: FeatureSet) throws(DriverError) {
    for word in 0..<2 {
      try write(MMIO.driverFeaturesSelect, UInt32(word))
      try write(MMIO.driverFeatures, UInt32(truncatingIfNeeded: features.rawValue >> UInt64(32 * word)))
    }
  }

  /// The queues whose largest size is not 0.
  func queueCount(limit: Int) throws(DriverError) -> Int {
    var count = 0
    while count < limit, try maximumQueueSize(count) > 0 { count += 1 }
    return count
  }

  func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16 {
    try write(MMIO.queueSelect, UInt32(clamping: queue))
    return UInt16(clamping: try read(MMIO.queueSizeMaximum))
  }

  func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try write(MMIO.queueSelect, UInt32(queue))
    guard try read(MMIO.queueReady) == 0 else { throw .refused("queue \(queue) is in use already") }
    try write(MMIO.queueSize, UInt32(configuration.size))
    for (register, address) in [
      (MMIO.queueTable, configuration.descriptorTable), (MMIO.queueAvailable, configuration.availableRing),
      (MMIO.queueUsed, configuration.usedRing),
    ] {
      try write(register, UInt32(truncatingIfNeeded: address.rawValue))
      try write(register + 4, UInt32(truncatingIfNeeded: address.rawValue >> 32))
    }
    try write(MMIO.queueReady, 1)
  }

  func resetQueue(_ queue: Int) throws(DriverError) {
    try write(MMIO.queueSelect, UInt32(queue))
    try write(MMIO.queueReset, 1)
    try awaitReset(of: queue) { () throws(DriverError) in UInt64(try read(MMIO.queueReset)) }
    guard try read(MMIO.queueReady) == 0 else { throw .refused("queue \(queue) is ready after its reset") }
  }

  func disableQueue(_ queue: Int) throws(DriverError) {
    try write(MMIO.queueSelect, UInt32(queue))
    try write(MMIO.queueReady, 0)
    // 4.2.2.2: read back, to make sure that the device has released it.
    guard try read(MMIO.queueReady) == 0 else { throw .refused("queue \(queue) does not stop") }
  }
}

extension MMIODriver {
  var notifyPlace: (offset: UInt32, stride: UInt32) { (MMIO.queueNotify, 0) }
}

final class LegacyMMIODriver: MMIODriver {
  static let pageSize = 4096
  override var name: String { "virtio-mmio version 1" }
  override var ringShape: RingShape? { .legacy(alignment: Self.pageSize) }

  /// There is no such counter.
  override func configurationGeneration() throws(DriverError) -> UInt32 { 0 }

  /// Every initialization begins with a reset, which clears the page size.
  override func setStatus(_ status: UInt8) throws(DriverError) {
    try super.setStatus(status)
    if status == 0 { try write(MMIO.guestPageSize, UInt32(Self.pageSize)) }
  }

  override func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try write(MMIO.queueSelect, UInt32(queue))
    guard try read(MMIO.queuePageNumber) == 0 else { throw .refused("queue \(queue) is in use already") }
    try write(MMIO.queueSize, UInt32(configuration.size))
    try write(MMIO.queueAlign, UInt32(Self.pageSize))
    let page = UInt32(truncatingIfNeeded: configuration.descriptorTable.rawValue / UInt64(Self.pageSize))
    try write(MMIO.queuePageNumber, page)
    guard try read(MMIO.queuePageNumber) == page else { throw .refused("queue \(queue) was not taken") }
  }

  override func resetQueue(_ queue: Int) throws(DriverError) {
    throw .badRequest("a legacy device has no RING_RESET")
  }

  override func disableQueue(_ queue: Int) throws(DriverError) {
    try write(MMIO.queueSelect, UInt32(queue))
    try write(MMIO.queuePageNumber, 0)
    guard try read(MMIO.queuePageNumber) == 0 else { throw .refused("queue \(queue) does not stop") }
  }
}
