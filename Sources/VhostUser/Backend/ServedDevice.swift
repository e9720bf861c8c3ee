/// A device beside what has to be remembered of it from one connection to the next.
internal import VirtioCore

/// Carries out what sessions want of a device.
final class ServedDevice {
  let device: any VirtioDevice
  let attended: AttendedDevice
  /// The choice that the device works with. It outlives a connection, so that a front-end that comes back for the same
  /// running guest does not put the configuration back to its start: a guest that chose write-through counts on it.
  private var features: FeatureSet?

  private let memoryBudget: UInt64
  private let publishesInOrder: Bool

  init(_ device: any VirtioDevice, memoryBudget: UInt64, publishesInOrder: Bool) {
    self.device = device
    self.publishesInOrder = publishesInOrder
    self.memoryBudget = memoryBudget
    attended = AttendedDevice(device)
  }

  var description: BackendSession.DeviceDescription {
    .init(
      features: device.features, queueCount: device.queueCount, maximumQueueSize: device.maximumQueueSize,
      memoryBudget: memoryBudget, publishesInOrder: publishesInOrder)
  }

  func negotiate(_ chosen: FeatureSet) -> Bool {
    if chosen == features { return true }
    guard device.accepts(chosen) else { return false }
    device.negotiated(chosen)
    features = chosen
    return true
  }

  /// - Parameter restores: success also when the bytes are there already.
  func write(_ bytes: [UInt8], at offset: Int, restores: Bool) -> Bool {
    device.writeConfiguration(at: offset, bytes)
      || restores && device.readConfiguration(at: offset, count: bytes.count) == bytes
  }

  func reset() {
    device.reset()
    features = nil
  }
}
