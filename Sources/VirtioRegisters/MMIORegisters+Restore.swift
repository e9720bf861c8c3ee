/// From registers to a record of them and back. Going back is a replay of register writes, so a forged record can do nothing
/// that a driver could not do.
internal import VirtioCore

extension MMIORegisters {
  /// The state as a plain record. A queue that is being reset is recorded as not ready: its driver waits for that.
  public var image: RegisterImage {
    var image = RegisterImage()
    image.status = status
    image.deviceFeaturesSelect = deviceFeaturesSelect
    image.driverFeaturesSelect = driverFeaturesSelect
    image.queueSelect = queueSelect
    image.driverFeatures = features
    image.strayFeatures = negotiation.strayBits
    image.queues = queues.map { .init(configuration: $0.configuration, ready: $0.ready && !$0.resetting) }
    image.configurationWrites = configurationWrites
    return image
  }

  /// What came of a replay.
  public enum Restoration: Hashable, Sendable {
    /// The registers read as the record says.
    case complete
    /// This device cannot do what the driver had agreed on with its predecessor: DEVICE_NEEDS_RESET is set, and the driver
    /// has to be told.
    case refused
  }

  /// Registers that stand where a record says, and the effects that bring a device there.
  ///
  /// - Parameter image: checked as a driver's writes are, by being written.
  public static func restore(
    _ image: RegisterImage, face: RegisterFace
  ) -> (registers: MMIORegisters, effects: [Effect], restoration: Restoration) {
    var registers = MMIORegisters(face: face)
    var effects: [Effect] = []
    func write(_ register: Register, _ value: UInt32) {
      effects += registers.write(offset: register.rawValue, width: 4, value: UInt64(value))
    }
    // A driver's order (virtio 3.1.1): features, FEATURES_OK, configuration, queues, DRIVER_OK.
    let accepted = image.driverFeatures.rawValue
    write(.driverFeaturesSelect, 0)
    write(.driverFeatures, UInt32(truncatingIfNeeded: accepted))
    write(.driverFeaturesSelect, 1)
    write(.driverFeatures, UInt32(truncatingIfNeeded: accepted >> 32))
    if image.strayFeatures {
      write(.driverFeaturesSelect, 2)
      write(.driverFeatures, 1)
    }
    let early = image.status.subtracting([.driverOK, .needsReset])
    if !early.isEmpty { write(.status, UInt32(early.rawValue)) }
    for run in image.configurationWrites.runs { effects.append(.configWrite(offset: run.offset, bytes: run.bytes)) }
    registers.configurationWrites = image.configurationWrites
    for (index, queue) in image.queues.prefix(registers.queues.count).enumerated() {
      write(.queueSelect, UInt32(index))
      write(.queueSize, UInt32(queue.configuration.size))
      write(.queueDescriptorLow, UInt32(truncatingIfNeeded: queue.configuration.descriptorTable.rawValue))
      write(.queueDescriptorHigh, UInt32(truncatingIfNeeded: queue.configuration.descriptorTable.rawValue >> 32))
      write(.queueDriverLow, UInt32(truncatingIfNeeded: queue.configuration.availableRing.rawValue))
      write(.queueDriverHigh, UInt32(truncatingIfNeeded: queue.configuration.availableRing.rawValue >> 32))
      write(.queueDeviceLow, UInt32(truncatingIfNeeded: queue.configuration.usedRing.rawValue))
      write(.queueDeviceHigh, UInt32(truncatingIfNeeded: queue.configuration.usedRing.rawValue >> 32))
      write(.queueReady, queue.ready ? 1 : 0)
    }
    // Before DRIVER_OK, so that a device in need of a reset starts nothing.
    if image.status.contains(.needsReset) { _ = registers.needReset() }
    var restoration = Restoration.complete
    if !registers.canServe(image) {
      _ = registers.needReset()
      restoration = .refused
    } else if image.status.contains(.driverOK) {
      write(.status, UInt32(image.status.rawValue))
    }
    registers.deviceFeaturesSelect = image.deviceFeaturesSelect
    registers.driverFeaturesSelect = image.driverFeaturesSelect
    registers.queueSelect = image.queueSelect
    return (registers, effects, restoration)
  }

  /// Whether the replay has led where the record says: the features stuck, and the ready queues are as they were.
  private func canServe(_ image: RegisterImage) -> Bool {
    guard image.status.contains(.featuresOK) == status.contains(.featuresOK) else { return false }
    guard image.status.contains(.featuresOK) || !image.status.contains(.driverOK) else { return false }
    return image.queues.enumerated().allSatisfy { index, queue in
      guard queue.ready else { return true }
      guard queues.indices.contains(index) else { return false }
      return queues[index].ready && queues[index].configuration == queue.configuration
    }
  }
}
