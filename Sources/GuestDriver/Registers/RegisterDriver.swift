/// What a driver does with a device's registers, over any interface.
internal import Glibc
internal import MemoryFile
internal import VirtioCore
internal import VirtioRegisters

/// What every driver needs, done over one register interface. The verbs are those of Linux's `virtio_config_ops`.
protocol RegisterDriver: AnyObject {
  /// For people.
  var name: String { get }
  /// Legacy interfaces need each ring in one region of the legacy layout; `nil`: the driver chooses.
  var ringShape: RingShape? { get }
  /// The device alone decides how many entries a ring has.
  var hasFixedQueueSize: Bool { get }

  func deviceID() throws(DriverError) -> UInt32
  /// Reads `width` bytes of the configuration space: 1, 2 or 4, at a multiple of that.
  func readConfiguration(_ offset: UInt32, width: Int) throws(DriverError) -> UInt64
  func writeConfiguration(_ offset: UInt32, _ byte: UInt8) throws(DriverError)
  func configurationGeneration() throws(DriverError) -> UInt32
  func status() throws(DriverError) -> UInt8
  func setStatus(_ status: UInt8) throws(DriverError)
  func offeredFeatures() throws(DriverError) -> FeatureSet
  func acceptFeatures(_ features: FeatureSet) throws(DriverError)
  /// - Parameter limit: the most queues there can be.
  func queueCount(limit: Int) throws(DriverError) -> Int
  func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16
  func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError)
  /// Takes one queue down without the others, and waits until the device has released it.
  func disableQueue(_ queue: Int) throws(DriverError)
  /// Takes one queue down while the others continue (RING_RESET, virtio 2.6.1), and waits until the reset is complete.
  func resetQueue(_ queue: Int) throws(DriverError)
  /// Where kicks with data go, for the mailbox: queue 0's register, and the distance to the next queue's.
  var notifyPlace: (offset: UInt32, stride: UInt32) { get }
  /// Sets up interrupts, before the first queue is set up.
  func prepareQueues() throws(DriverError)
}

extension RegisterDriver {
  var ringShape: RingShape? { nil }
  var hasFixedQueueSize: Bool { false }
  func prepareQueues() throws(DriverError) {}

  /// Waits until the register that reports the reset reads 0.
  func awaitReset(of queue: Int, _ register: () throws(DriverError) -> UInt64) throws(DriverError) {
    // 2.6.1.1.2: it is not over before the register reads 0.
    let end = ContinuousClock.now + Patience.limit
    while try register() != 0 {
      guard .now < end else {
        throw .timeout("queue \(queue) was not reset within \(Patience.limit / .seconds(1)) s")
      }
      usleep(100)
    }
  }
}

/// The mailbox, with its errors translated to the driver's.
struct RegisterAccess {
  let file: MemoryFileDriver
  let turn: RegisterTurn

  func read(_ offset: UInt32, _ width: Int) throws(DriverError) -> UInt64 {
    do {
      return try turn.alone { () throws(MemoryFileError) in try file.read(offset, width: width) }
    } catch { throw Self.translated(error) }
  }

  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws(DriverError) {
    do {
      try turn.alone { () throws(MemoryFileError) in try file.write(offset, width: width, value) }
    } catch { throw Self.translated(error) }
  }

  private static func translated(_ error: MemoryFileError) -> DriverError {
    switch error {
    case .noDevice: .noDevice("\(error)")
    case .noAnswer: .timeout("\(error)")
    default: .refused("\(error)")
    }
  }
}

extension RegisterAccess {
  /// Finds out what the file's registers are, and makes them ready for use.
  ///
  /// - Parameter prefersLegacy: use the older one of two interfaces.
  func probe(prefersLegacy: Bool) throws(DriverError) -> any RegisterDriver {
    let interface = file.file.layout.interface
    switch interface {
    case .mmio, .mmioLegacy:
      // 4.2.3.1.1: these two before anything else.
      let (magic, version) = (try read(0x000, 4), try read(0x004, 4))
      guard magic == 0x7472_6976, version == (interface == .mmio ? 2 : 1) else {
        throw .refused(
          "the memory file's registers are not virtio-mmio version \(interface == .mmio ? 2 : 1): "
            + "magic 0x\(String(magic, radix: 16)), version \(version)")
      }
      return interface == .mmio ? MMIODriver(self) : LegacyMMIODriver(self)
    case .pci, .pciLegacy, .pciTransitional:
      let function = PCIFunction(self)
      try function.enable()
      if interface.hasLegacy, prefersLegacy || !interface.hasModern { return try LegacyPCIDriver(function) }
      return try ModernPCIDriver(function)
    }
  }
}
