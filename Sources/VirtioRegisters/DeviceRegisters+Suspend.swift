/// SUSPEND (virtio 3.4, since 1.4): the driver suspends the device, and finds everything unchanged when it resumes it.
internal import VirtioCore

/// The configuration space as the driver sees it while the device is suspended, when no field may change (virtio 3.4.2).
struct Suspension: Sendable {
  private let configuration: [UInt8]
  let generation: UInt32
  /// The configuration has changed, and the driver is notified when it resumes the device.
  var owesConfigurationChange = false

  init(_ face: RegisterFace) {
    // Read first: a change between the two reads is then noticed when the device is resumed.
    generation = face.configurationGeneration()
    configuration = face.readConfiguration(0, ConfigurationWrites.capacity)
  }

  func read(_ offset: Int, _ count: Int) -> [UInt8] {
    (0..<count).map { offset < configuration.count - $0 ? configuration[offset + $0] : 0 }
  }
}

extension DeviceRegisters {
  /// All queues are stopped before the driver's write is answered, including one that is being reset: its reset waits for the
  /// requests in flight.
  mutating func suspend() -> [Effect] {
    suspension = Suspension(face)
    return queues.indices.filter { queues[$0].ready }.map { .pauseQueue($0) }
  }

  mutating func resume() -> [Effect] {
    let owes = suspension?.owesConfigurationChange ?? false
    suspension = nil
    return startReadyQueues() + (owes || status.contains(.needsReset) ? [.configurationChanged] : [])
  }

  /// The device's configuration space has changed.
  ///
  /// - Returns: whether to notify the driver now.
  mutating func configurationChanged() -> Bool {
    suspension?.owesConfigurationChange = true
    return isInUse
  }

  // MARK: The configuration space

  /// - Parameter offset: not negative.
  func readConfiguration(_ offset: Int, _ count: Int) -> [UInt8] {
    suspension?.read(offset, count) ?? face.readConfiguration(offset, count)
  }

  var configurationGeneration: UInt32 { suspension?.generation ?? face.configurationGeneration() }

  /// A driver's write to the configuration space. It has no effect while the device is suspended.
  func writeConfiguration(_ offset: Int, _ bytes: [UInt8]) -> [Effect] {
    suspension == nil ? [.configWrite(offset: offset, bytes: bytes)] : []
  }
}
