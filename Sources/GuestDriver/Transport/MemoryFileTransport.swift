/// A device on a memory file: virtio-mmio registers through the file's mailbox (virtio 4.2.2), doorbells for lines.
internal import Glibc
public import MemoryFile
public import VirtioCore

/// A driver of virtio-mmio version 2.
public final class MemoryFileTransport: DriverTransport {
  public let name = "memory file"
  public let memory: DriverMemory
  public let file: MemoryFileDriver
  private let register: NotifyRegister
  public var notifyRegister: NotifyRegister? { register }
  private var queueCountFound: Int?
  private var configured = 0
  private var configurationSeen: UInt32

  /// The registers that a driver needs.
  enum Register {
    static let magic: UInt32 = 0x000
    static let version: UInt32 = 0x004
    static let deviceID: UInt32 = 0x008
    static let deviceFeatures: UInt32 = 0x010
    static let deviceFeaturesSelect: UInt32 = 0x014
    static let driverFeatures: UInt32 = 0x020
    static let driverFeaturesSelect: UInt32 = 0x024
    static let queueSelect: UInt32 = 0x030
    static let queueSizeMaximum: UInt32 = 0x034
    static let queueSize: UInt32 = 0x038
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

  /// Opens the file, waits for the device, and looks whether it is one.
  public convenience init(path: String, milliseconds: Int = 5000) throws(DriverError) {
    let file: MemoryFileDriver
    do { file = try MemoryFileDriver.open(path: path, timeout: milliseconds) } catch { throw .noDevice("\(error)") }
    try self.init(file)
  }

  public init(_ file: MemoryFileDriver) throws(DriverError) {
    self.file = file
    register = NotifyRegister(file, offset: Register.queueNotify)
    // A driver needs no more than this; the rest of a large file stays untouched, on disk as well.
    memory = try DriverMemory(
      file.file.memory.regions.map {
        DriverMemory.Region(
          start: $0.start, size: Int(min($0.size, 256 << 20)), mapping: $0.mapping, offset: $0.offset)
      })
    configurationSeen = file.configurationCount
    // 4.2.3.1.1: these two before anything else.
    let (magic, version) = (try read(Register.magic), try read(Register.version))
    guard magic == 0x7472_6976, version == 2 else {
      throw .refused(
        "the memory file's registers are no virtio-mmio version 2: magic 0x\(String(magic, radix: 16)), version \(version)")
    }
  }

  private func read(_ register: UInt32) throws(DriverError) -> UInt32 {
    UInt32(truncatingIfNeeded: try ask { () throws(MemoryFileError) in try file.read(register) })
  }

  private func write(_ register: UInt32, _ value: UInt32) throws(DriverError) {
    try ask { () throws(MemoryFileError) in try file.write(register, UInt64(value)) }
  }

  private func ask<Result>(_ body: () throws(MemoryFileError) -> Result) throws(DriverError) -> Result {
    do { return try register.alone(body) } catch {
      switch error {
      case .noDevice: throw .noDevice("\(error)")
      case .noAnswer: throw .timeout("\(error)")
      default: throw .refused("\(error)")
      }
    }
  }

  public func deviceID() throws(DriverError) -> UInt32 { try read(Register.deviceID) }

  /// By the field's natural widths as far as they are known: 32-bit words, then bytes (virtio 4.2.2.2).
  public func readConfiguration(at offset: Int, count: Int) throws(DriverError) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      let place = Register.configuration + UInt32(clamping: offset + bytes.count)
      let width = place % 4 == 0 && count - bytes.count >= 4 ? 4 : 1
      let value = try ask { () throws(MemoryFileError) in try file.read(place, width: width) }
      bytes += (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }
    return bytes
  }

  public func writeConfiguration(at offset: Int, _ bytes: [UInt8]) throws(DriverError) {
    for (place, byte) in bytes.enumerated() {
      let register = Register.configuration + UInt32(clamping: offset + place)
      try ask { () throws(MemoryFileError) in try file.write(register, width: 1, UInt64(byte)) }
    }
  }

  public func configurationGeneration() throws(DriverError) -> UInt32 { try read(Register.configurationGeneration) }

  public func status() throws(DriverError) -> DeviceStatus {
    DeviceStatus(rawValue: UInt8(truncatingIfNeeded: try read(Register.status)))
  }

  public func setStatus(_ status: DeviceStatus) throws(DriverError) {
    try write(Register.status, UInt32(status.rawValue))
  }

  public func reset() throws(DriverError) {
    try write(Register.status, 0)
    configured = 0
    let end = ContinuousClock.now + Patience.limit
    while try !status().isEmpty {
      guard .now < end else {
        throw .timeout("the device's status did not become 0 after a reset within \(Patience.limit / .seconds(1)) s")
      }
    }
  }

  public func offeredFeatures() throws(DriverError) -> FeatureSet {
    var bits: UInt64 = 0
    for word in 0..<2 {
      try write(Register.deviceFeaturesSelect, UInt32(word))
      bits |= UInt64(try read(Register.deviceFeatures)) << UInt64(32 * word)
    }
    return FeatureSet(rawValue: bits)
  }

  public func acceptFeatures(_ features: FeatureSet) throws(DriverError) {
    for word in 0..<2 {
      try write(Register.driverFeaturesSelect, UInt32(word))
      try write(Register.driverFeatures, UInt32(truncatingIfNeeded: features.rawValue >> UInt64(32 * word)))
    }
  }

  /// The queues whose largest size is not 0.
  public func queueCount() throws(DriverError) -> Int {
    if let queueCountFound { return queueCountFound }
    var count = 0
    // The file has doorbells for no more than these.
    while count < file.file.layout.maximumQueues, try maximumQueueSize(count) > 0 { count += 1 }
    queueCountFound = count
    return count
  }

  public func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16 {
    try write(Register.queueSelect, UInt32(clamping: queue))
    return UInt16(clamping: try read(Register.queueSizeMaximum))
  }

  public func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines] {
    for (index, configuration) in configurations.enumerated() { try enableQueue(index, configuration) }
    configured = configurations.count
    return configurations.indices.map { .memoryFile(file, queue: $0) }
  }

  public func enableQueue(_ index: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try write(Register.queueSelect, UInt32(index))
    guard try read(Register.queueReady) == 0 else { throw .refused("queue \(index) is in use already") }
    try write(Register.queueSize, UInt32(configuration.size))
    for (register, address) in [
      (Register.queueTable, configuration.descriptorTable), (Register.queueAvailable, configuration.availableRing),
      (Register.queueUsed, configuration.usedRing),
    ] {
      try write(register, UInt32(truncatingIfNeeded: address.rawValue))
      try write(register + 4, UInt32(truncatingIfNeeded: address.rawValue >> 32))
    }
    try write(Register.queueReady, 1)
  }

  public func resetQueue(_ index: Int) throws(DriverError) {
    try write(Register.queueSelect, UInt32(index))
    try write(Register.queueReset, 1)
    // 2.6.1.1.2, 4.2.2.2: it is not over before the register reads 0.
    let end = ContinuousClock.now + Patience.limit
    while try read(Register.queueReset) != 0 {
      guard .now < end else {
        throw .timeout("queue \(index) was not reset within \(Patience.limit / .seconds(1)) s")
      }
      usleep(100)
    }
    guard try read(Register.queueReady) == 0 else { throw .refused("queue \(index) is ready after its reset") }
  }

  public func deleteQueues() throws(DriverError) {
    for index in 0..<configured {
      try write(Register.queueSelect, UInt32(index))
      try write(Register.queueReady, 0)
      // 4.2.2.2: read back, to know that the device let go of it.
      guard try read(Register.queueReady) == 0 else { throw .refused("queue \(index) does not stop") }
    }
    configured = 0
  }

  public func waitForConfigurationChange(milliseconds: Int) throws(DriverError) -> Bool {
    let now = file.waitForConfigurationChange(whileEquals: configurationSeen, milliseconds: milliseconds)
    defer { configurationSeen = now }
    if now != configurationSeen { file.acknowledgeInterrupt(2) }
    return now != configurationSeen
  }

  public func waitForFailure(queue: Int, milliseconds: Int) throws(DriverError) -> Bool {
    let end = ContinuousClock.now + .milliseconds(milliseconds)
    while true {
      if try status().contains(.needsReset) { return true }
      let left = (end - .now).milliseconds
      guard left > 0 else { return false }
      file.waitForConfigurationChange(whileEquals: configurationSeen, milliseconds: min(left, 10))
    }
  }
}
