/// A device on a memory file: registers through the file's mailbox, doorbells for lines.
public import MemoryFile
public import VirtioCore
internal import VirtioRegisters

/// A driver for whichever register interface the file has.
public final class MemoryFileTransport: DriverTransport {
  public var name: String { file.file.layout.interface == .mmio ? "memory file" : "memory file, \(registers.name)" }
  public let memory: DriverMemory
  public let file: MemoryFileDriver
  private let registers: any RegisterDriver
  private let register: NotifyRegister
  public var notifyRegister: NotifyRegister? { register }
  private var queueCountFound: Int?
  private var configured = 0
  private var configurationSeen: UInt32

  /// Opens the file, waits for the device, and checks whether it is one.
  ///
  /// - Parameter prefersLegacy: use the older interface of a device that has two.
  public convenience init(
    path: String, milliseconds: Int = 5000, prefersLegacy: Bool = false
  ) throws(DriverError) {
    let file: MemoryFileDriver
    do { file = try MemoryFileDriver.open(path: path, timeout: milliseconds) } catch { throw .noDevice("\(error)") }
    try self.init(file, prefersLegacy: prefersLegacy)
  }

  public init(_ file: MemoryFileDriver, prefersLegacy: Bool = false) throws(DriverError) {
    self.file = file
    // A driver needs no more than this; the rest of a large file stays untouched, on disk as well.
    memory = try DriverMemory(
      file.file.memory.regions.map {
        DriverMemory.Region(
          start: $0.start, size: Int(min($0.size, 256 << 20)), mapping: $0.mapping, offset: $0.offset)
      })
    configurationSeen = file.configurationCount
    let access = RegisterAccess(file: file, turn: RegisterTurn())
    registers = try access.probe(prefersLegacy: prefersLegacy)
    let place = registers.notifyPlace
    register = NotifyRegister(file, access.turn, offset: place.offset, stride: place.stride)
  }

  public var ringShape: RingShape? { registers.ringShape }
  public var hasFixedQueueSize: Bool { registers.hasFixedQueueSize }

  public func deviceID() throws(DriverError) -> UInt32 { try registers.deviceID() }

  /// Field by field, each with its own width (virtio 4.1.3.1, 4.2.2.2).
  public func readConfiguration(at offset: Int, count: Int) throws(DriverError) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      let place = UInt32(clamping: offset + bytes.count)
      let width = BlockConfig.width(at: Int(place), atMost: count - bytes.count)
      let value = try registers.readConfiguration(place, width: width)
      bytes += (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }
    return bytes
  }

  public func writeConfiguration(at offset: Int, _ bytes: [UInt8]) throws(DriverError) {
    for (place, byte) in bytes.enumerated() { try registers.writeConfiguration(UInt32(clamping: offset + place), byte) }
  }

  public func configurationGeneration() throws(DriverError) -> UInt32 { try registers.configurationGeneration() }

  public func status() throws(DriverError) -> DeviceStatus { DeviceStatus(rawValue: try registers.status()) }

  public func setStatus(_ status: DeviceStatus) throws(DriverError) { try registers.setStatus(status.rawValue) }

  public func reset() throws(DriverError) {
    try registers.setStatus(0)
    configured = 0
    let end = ContinuousClock.now + Patience.limit
    while try !status().isEmpty {
      guard .now < end else {
        throw .timeout("the device's status did not become 0 after a reset within \(Patience.limit / .seconds(1)) s")
      }
    }
  }

  public func offeredFeatures() throws(DriverError) -> FeatureSet { try registers.offeredFeatures() }

  public func acceptFeatures(_ features: FeatureSet) throws(DriverError) { try registers.acceptFeatures(features) }

  public func queueCount() throws(DriverError) -> Int {
    if let queueCountFound { return queueCountFound }
    // The file has doorbells for no more than these.
    let count = try registers.queueCount(limit: file.file.layout.maximumQueues)
    queueCountFound = count
    return count
  }

  public func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16 { try registers.maximumQueueSize(queue) }

  public func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines] {
    try registers.prepareQueues()
    for (index, configuration) in configurations.enumerated() { try registers.enableQueue(index, configuration) }
    configured = configurations.count
    return configurations.indices.map { .memoryFile(file, queue: $0) }
  }

  public func enableQueue(_ index: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try registers.enableQueue(index, configuration)
  }

  public func resetQueue(_ index: Int) throws(DriverError) { try registers.resetQueue(index) }

  public func deleteQueues() throws(DriverError) {
    for index in 0..<configured { try registers.disableQueue(index) }
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
