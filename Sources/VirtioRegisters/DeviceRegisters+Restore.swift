/// Saves registers to a record and restores them. Restoring replays what a driver did, so a forged record can do nothing that a
/// driver could not do.
internal import VirtioCore

/// The outcome of a replay.
public enum RegisterRestoration: Hashable, Sendable {
  /// The registers read as the record says.
  case complete
  /// The driver had suspended the device, and suspended queues do not survive their process: DEVICE_NEEDS_RESET is set, and the
  /// driver has to be notified.
  case suspended
  /// This device does not support what the driver had negotiated with its predecessor: DEVICE_NEEDS_RESET is set, and the
  /// driver has to be notified.
  case refused
}

extension DeviceRegisters {
  /// The state as a plain record. A queue that is being reset is recorded as not ready: that is what its driver waits for.
  var image: RegisterImage {
    var image = RegisterImage()
    image.status = status
    image.deviceFeaturesSelect = deviceFeaturesSelect
    image.driverFeaturesSelect = driverFeaturesSelect
    image.queueSelect = queueSelect
    image.driverFeatures = negotiation.accepted
    image.strayFeatures = negotiation.strayBits
    image.servesEarly = servesEarly
    image.queues = queues.map {
      .init(configuration: $0.configuration, ready: $0.ready && !$0.resetting, alignment: $0.alignment)
    }
    image.configurationWrites = configurationWrites
    return image
  }

  /// Repeats, in fresh registers, the writes of a driver that the record stands for.
  ///
  /// - Parameters:
  ///   - image: any record; it is checked in the same way as a driver's writes.
  ///   - legacyPageSize: queues are given by page number, in pages of this size; `nil`: by addresses.
  mutating func replay(
    _ image: RegisterImage, legacyPageSize: UInt32? = nil
  ) -> (effects: [Effect], restoration: RegisterRestoration) {
    let wasSuspended = image.status.contains(.suspend)
    var image = image
    // DRIVER_OK, so that the driver is notified; DEVICE_NEEDS_RESET, so that its pending writes have no effect.
    if wasSuspended { image.status = image.status.subtracting(.suspend).union([.driverOK, .needsReset]) }
    var effects: [Effect] = []
    // Only a legacy driver is served without FEATURES_OK.
    let isLegacy = interface.hasLegacy && !image.status.contains(.featuresOK)
    let isEarly = isLegacy && image.servesEarly
    // The order of a driver (virtio 3.1.1): features, FEATURES_OK, configuration, queues, DRIVER_OK.
    if interface.hasModern {
      acceptWord(0, Self.word(0, of: image.driverFeatures))
      acceptWord(1, Self.word(1, of: image.driverFeatures))
      if image.strayFeatures { acceptWord(2, 1) }
    } else {
      acceptLegacy(Self.word(0, of: image.driverFeatures))
    }
    let early = image.status.subtracting([.driverOK, .needsReset])
    if !early.isEmpty { effects += writeStatus(UInt32(early.rawValue), isLegacy: isLegacy) }
    for run in image.configurationWrites.runs { effects.append(.configWrite(offset: run.offset, bytes: run.bytes)) }
    configurationWrites = image.configurationWrites
    for (index, queue) in image.queues.prefix(queues.count).enumerated() {
      queueSelect = UInt32(index)
      setQueueSize(UInt32(queue.configuration.size))
      setAlignment(queue.alignment)
      if let legacyPageSize {
        let number = legacyPageSize == 0 ? 0 : queue.configuration.descriptorTable.rawValue / UInt64(legacyPageSize)
        if queue.ready { effects += setPageNumber(UInt32(truncatingIfNeeded: number), pageSize: legacyPageSize) }
      } else {
        queues[index].configuration.descriptorTable = queue.configuration.descriptorTable
        queues[index].configuration.availableRing = queue.configuration.availableRing
        queues[index].configuration.usedRing = queue.configuration.usedRing
        effects += setQueueReady(queue.ready)
      }
    }
    // Before DRIVER_OK, so that a device in need of a reset starts nothing.
    if image.status.contains(.needsReset) { _ = negotiation.needReset() }
    var restoration: Restoration = wasSuspended ? .suspended : .complete
    if canServe(image, isLegacy: isLegacy) {
      if isEarly, status.contains(.needsReset) { servesEarly = true } else if isEarly { effects += serveEarly() }
      if image.status.contains(.driverOK) { effects += writeStatus(UInt32(image.status.rawValue), isLegacy: isLegacy) }
    }
    let isWhere = isEarly == servesEarly && (status.contains(.driverOK) || !image.status.contains(.driverOK))
    if !isWhere || !canServe(image, isLegacy: isLegacy) {
      _ = negotiation.needReset()
      effects.removeAll { if case .startQueue = $0 { true } else { false } }
      restoration = .refused
    }
    deviceFeaturesSelect = image.deviceFeaturesSelect
    driverFeaturesSelect = image.driverFeaturesSelect
    queueSelect = image.queueSelect
    return (effects, restoration)
  }

  typealias Restoration = RegisterRestoration

  /// Whether the replay has reached the state of the record: the features were accepted, and the ready queues are as they were.
  private func canServe(_ image: RegisterImage, isLegacy: Bool) -> Bool {
    guard image.status.contains(.featuresOK) == status.contains(.featuresOK) else { return false }
    guard isLegacy || image.status.contains(.featuresOK) || !image.status.contains(.driverOK) else { return false }
    if isLegacy, image.status.contains(.driverOK) || image.servesEarly {
      guard negotiation.accepted == image.driverFeatures, !image.strayFeatures else { return false }
    }
    return image.queues.enumerated().allSatisfy { index, queue in
      guard queue.ready else { return true }
      guard queues.indices.contains(index) else { return false }
      return queues[index].ready && queues[index].configuration == queue.configuration
    }
  }
}
