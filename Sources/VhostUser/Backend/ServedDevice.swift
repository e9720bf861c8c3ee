/// A device, and what has to be remembered of it from one connection to the next.
internal import VirtioCore

/// Executes on a device what sessions ask for.
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

  /// What is offered over a socket: a kick there is an event without a value (NOTIFICATION_DATA).
  /// What a driver behind an IOMMU needs is asked for over the back-end's own channel, and QEMU does without the device if it can
  /// neither have that nor acknowledgements.
  private func features(of device: any VirtioDevice) -> FeatureSet {
    let canAsk = protocolFeatures.isSuperset(of: [.backendRequests, .replyAck])
    return device.features.subtracting(
      canAsk ? [.notificationData, .suspend] : [.notificationData, .suspend, .accessPlatform])
  }

  /// A driver before this one, perhaps over another connection, chose otherwise.
  func replacesChoice(_ chosen: FeatureSet) -> Bool { features.map { $0 != chosen } ?? false }

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

  /// What a server that takes over the device has to know.
  var state: DeviceState {
    DeviceState(
      features: features(of: device).rawValue, queues: device.queueCount, maximumQueueSize: device.maximumQueueSize,
      negotiated: features?.rawValue,
      configuration: device.readConfiguration(at: 0, count: device.configurationSize))
  }

  /// Brings the device into the state that another server's had: the same offer, the same choice, the same configuration.
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
      guard negotiate(chosen) else { throw .invalid("a driver's choice of features that the device cannot work with") }
    } else if features != nil {
      reset()
    }
    let ours = device.readConfiguration(at: 0, count: device.configurationSize)
    guard ours.count == state.configuration.count else {
      throw .notTheSame(
        "configuration space", theirs: "\(state.configuration.count) bytes long", ours: "\(ours.count) bytes long")
    }
    // What a driver can have changed is written as the driver wrote it; everything else has to be the same.
    for offset in ours.indices where ours[offset] != state.configuration[offset] {
      guard device.writeConfiguration(at: offset, [state.configuration[offset]]) else { throw .configuration(offset: offset) }
    }
  }

  func reset() {
    device.reset()
    features = nil
  }
}
