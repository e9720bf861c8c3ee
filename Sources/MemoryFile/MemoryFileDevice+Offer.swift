/// The properties of a disk that its driver may rely on, which a device that takes over has to have, too.
internal import VirtioCore

extension MemoryFileDevice {
  /// The offer of one device, for another one that takes over from it. It is sent as JSON.
  public struct Offer: Codable, Hashable, Sendable {
    /// Feature bits.
    public var features: UInt64
    public var queues: Int
    public var maximumQueueSize: UInt16
    /// The bytes of the configuration space, with the driver's changes.
    public var configuration: [UInt8]
    /// Queues that run; for a paused device, those that ran when it was asked to pause. They continue even if others have
    /// failed.
    public var running: [Int]
  }

  /// The present offer of this device.
  public var offer: Offer {
    Offer(
      features: device.features.rawValue, queues: device.queueCount, maximumQueueSize: device.maximumQueueSize,
      configuration: device.readConfiguration(at: 0, count: device.configurationSize), running: queuesToGoOn.map(\.queue))
  }

  /// - Parameter accepted: the driver's choice of features, on which parts of the configuration space depend.
  func check(_ offer: Offer, _ accepted: FeatureSet) throws(MemoryFileError) {
    let missing = FeatureSet(rawValue: offer.features).subtracting(device.features)
    guard missing.isEmpty else { throw other("set of features", "larger by \(missing)", "without them") }
    guard offer.queues == device.queueCount else {
      throw other("number of queues", "\(offer.queues)", "\(device.queueCount)")
    }
    guard offer.maximumQueueSize == device.maximumQueueSize else {
      throw other("largest ring size", "\(offer.maximumQueueSize)", "\(device.maximumQueueSize)")
    }
    if device.accepts(accepted) { device.negotiated(accepted) }
    // It begins from its initial state when it adopts the state of the registers.
    defer { device.reset() }
    let ours = device.readConfiguration(at: 0, count: device.configurationSize)
    guard ours.count == offer.configuration.count else {
      throw other("configuration space", "\(offer.configuration.count) bytes long", "\(ours.count) bytes long")
    }
    // Bytes that a driver can have changed may differ; all others have to be the same.
    for offset in ours.indices where ours[offset] != offer.configuration[offset] {
      guard device.writeConfiguration(at: offset, [offer.configuration[offset]]) else {
        throw other("configuration space", "\(offer.configuration[offset]) at byte \(offset)", "\(ours[offset])")
      }
    }
  }

  private func other(_ what: String, _ theirs: String, _ ours: String) -> MemoryFileError {
    .otherDisk(path: file.path, what: what, theirs: theirs, ours: ours)
  }
}
