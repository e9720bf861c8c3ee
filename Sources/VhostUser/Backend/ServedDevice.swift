/// A device, and the state that outlives a connection.
internal import VirtioCore

/// Executes the effects of sessions on a device.
final class ServedDevice {
  let device: any VirtioDevice
  let attended: AttendedDevice
  /// The features in use. They outlive a connection, so that a front-end that reconnects for the same running guest does not
  /// reset the configuration: a guest that chose write-through relies on it.
  private var features: FeatureSet?

  private let memoryBudget: UInt64
  private let publishesInOrder: Bool
  private let protocolFeatures: ProtocolFeatures

  init(
    _ device: any VirtioDevice, memoryBudget: UInt64, publishesInOrder: Bool, protocolFeatures: ProtocolFeatures = .served
  ) {
    self.protocolFeatures = protocolFeatures
    self.device = device
    self.publishesInOrder = publishesInOrder
    self.memoryBudget = memoryBudget
    attended = AttendedDevice(device)
  }

  var description: BackendSession.DeviceDescription {
    .init(
      features: features(of: device), queueCount: device.queueCount, maximumQueueSize: device.maximumQueueSize,
      memoryBudget: memoryBudget, publishesInOrder: publishesInOrder, protocolFeatures: protocolFeatures,
      writableByte: device.writableByte)
  }

  /// The features that are offered over a socket. A kick there is an event without a value, so NOTIFICATION_DATA is not
  /// offered. Translations for a driver behind an IOMMU are requested on the back-end's channel, so ACCESS_PLATFORM needs that
  /// channel, and acknowledgements: QEMU does not start the device without them.
  private func features(of device: any VirtioDevice) -> FeatureSet {
    let canAsk = protocolFeatures.isSuperset(of: [.backendRequests, .replyAck])
    return device.features.subtracting(
      canAsk ? [.notificationData, .suspend] : [.notificationData, .suspend, .accessPlatform])
  }

  /// Whether a previous driver, perhaps over another connection, chose other features.
  func replacesChoice(_ chosen: FeatureSet) -> Bool { features.map { $0 != chosen } ?? false }

  func negotiate(_ chosen: FeatureSet) -> Bool {
    if chosen == features { return true }
    guard device.accepts(chosen) else { return false }
    device.negotiated(chosen)
    features = chosen
    return true
  }

  /// - Parameter restores: it also succeeds if the bytes are there already.
  func write(_ bytes: [UInt8], at offset: Int, restores: Bool) -> Bool {
    device.writeConfiguration(at: offset, bytes)
      || restores && device.readConfiguration(at: offset, count: bytes.count) == bytes
  }

  /// The state that a server needs to take over the device.
  var state: DeviceState {
    DeviceState(
      features: features(of: device).rawValue, queues: device.queueCount, maximumQueueSize: device.maximumQueueSize,
      negotiated: features?.rawValue,
      configuration: device.readConfiguration(at: 0, count: device.configurationSize))
  }

  /// Brings the device into the state of another server's device: the same offered features, the same choice, the same
  /// configuration.
  func restore(_ state: DeviceState) throws(TakeoverError) {
    let missing = FeatureSet(rawValue: state.features).subtracting(device.features)
    guard missing.isEmpty else { throw .features(missing) }
    guard state.queues == device.queueCount else {
      throw .notTheSame("number of queues", theirs: "\(state.queues)", ours: "\(device.queueCount)")
    }
    guard state.maximumQueueSize == device.maximumQueueSize else {
      throw .notTheSame("largest ring size", theirs: "\(state.maximumQueueSize)", ours: "\(device.maximumQueueSize)")
    }
    if let chosen = state.negotiated.map({ FeatureSet(rawValue: $0) }) {
      guard negotiate(chosen) else { throw .invalid("the driver chose features that the device cannot work with") }
    } else if features != nil {
      reset()
    }
    let ours = device.readConfiguration(at: 0, count: device.configurationSize)
    guard ours.count == state.configuration.count else {
      throw .notTheSame(
        "configuration space", theirs: "\(state.configuration.count) bytes long", ours: "\(ours.count) bytes long")
    }
    // Bytes that a driver can have changed are written again; everything else has to be the same.
    for offset in ours.indices where ours[offset] != state.configuration[offset] {
      guard device.writeConfiguration(at: offset, [state.configuration[offset]]) else { throw .configuration(offset: offset) }
    }
  }

  func reset() {
    device.reset()
    features = nil
  }
}
