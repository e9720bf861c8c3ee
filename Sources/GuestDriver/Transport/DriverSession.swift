/// Brings a device up, and down again, in the order of virtio 3.1.1.
public import VirtioCore

/// The choices of a driver.
public struct DriverOptions: Sendable {
  /// The features to accept, as far as they are offered. With RING_PACKED among them, the rings are packed if possible.
  public var features: FeatureSet
  /// Fail if they cannot be packed.
  public var needsPacked = false
  /// How many queues; `nil`: all of them.
  public var queues: Int?
  /// Entries of each ring; `nil`: 128 or the device's maximum, whichever is less.
  public var queueSize: UInt16?
  public var shape: RingShape
  /// Indirect tables of each queue, and the descriptors in each.
  public var indirectTables: Int
  public var indirectEntries: Int

  public init(
    features: FeatureSet, queues: Int? = nil, queueSize: UInt16? = nil, shape: RingShape = .separate,
    indirectTables: Int = 32, indirectEntries: Int = 64
  ) {
    self.features = features
    self.queues = queues
    self.queueSize = queueSize
    self.shape = shape
    self.indirectTables = indirectTables
    self.indirectEntries = indirectEntries
  }
}

/// A device from its first reset to its last.
public final class DriverSession {
  public let transport: any DriverTransport
  public let offered: FeatureSet
  /// What was negotiated.
  public let features: FeatureSet
  public let options: DriverOptions
  /// The format of the queues.
  public var format: RingFormat { RingFormat(features) }
  /// One for each queue, after `start`.
  public private(set) var queues: [QueueSetup] = []
  /// How large each queue may be, as the device reported before it was set up: if the same register takes the size, the maximum
  /// cannot be read afterwards.
  private var maximumSizes: [UInt16] = []

  private var status: DeviceStatus {
    features.contains(.version1) ? [.acknowledge, .driver, .featuresOK] : [.acknowledge, .driver]
  }

  /// Steps 1 to 6: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK.
  ///
  /// If VERSION_1 is not negotiated, the device is driven as a legacy one, which has no FEATURES_OK (virtio 3.1.2).
  ///
  /// - Parameter deviceID: the virtio ID of the devices that the caller can drive.
  public init(_ transport: any DriverTransport, deviceID: UInt32, options: DriverOptions) throws(DriverError) {
    self.transport = transport
    self.options = options
    let found = try transport.deviceID()
    guard found == deviceID else { throw .wrongDevice(found, wanted: deviceID) }
    try transport.reset()
    try transport.setStatus(.acknowledge)
    try transport.setStatus([.acknowledge, .driver])
    offered = try transport.offeredFeatures()
    features = Self.choose(of: offered, options)
    guard format == .packed || !options.needsPacked else {
      try transport.setStatus([.acknowledge, .driver, .failed])
      throw .noPackedRing
    }
    try transport.acceptFeatures(features)
    guard features.contains(.version1) else { return }
    try transport.setStatus(status)
    guard try transport.status().contains(.featuresOK) else {
      try giveUp()
      throw .featuresRefused(features)
    }
  }

  /// A packed ring needs a device of version 1 (virtio 6.1).
  private static func choose(of offered: FeatureSet, _ options: DriverOptions) -> FeatureSet {
    let features = offered.intersection(options.features)
    guard !features.contains(.version1) else { return features }
    // A legacy driver that frames requests as it likes has to accept ANY_LAYOUT (virtio 6.3).
    return features.subtracting(.packedRing).union(offered.intersection(.anyLayout))
  }

  /// Steps 7 and 8: the queues, DRIVER_OK.
  ///
  /// - Parameter available: the number of queues in the device's configuration, if it has that field.
  public func start(available: Int? = nil) throws(DriverError) {
    let all = try transport.queueCount()
    let count = min(all, available ?? all)
    let wanted = options.queues ?? count
    guard wanted > 0, wanted <= count else {
      try giveUp()
      throw .tooManyQueues(wanted, available: count)
    }
    maximumSizes = []
    var rings: [RingMemory] = []
    for queue in 0..<wanted {
      let maximum = try transport.maximumQueueSize(queue)
      maximumSizes.append(maximum)
      let size = transport.hasFixedQueueSize ? maximum : options.queueSize ?? min(128, maximum)
      guard size <= maximum, RingLayout.allows(size, format) else {
        try giveUp()
        throw .badQueueSize(queue: queue, size, maximum: maximum, format)
      }
      // There is no legacy layout of a packed ring.
      let shape = format == .packed ? .separate : transport.ringShape ?? options.shape
      rings.append(try RingMemory(size: size, format: format, shape: shape, in: transport.memory))
    }
    let lines = try transport.findQueues(rings.map(\.layout.configuration))
    for (index, (ring, lines)) in zip(rings, lines).enumerated() { queues.append(try setUp(index, ring, lines)) }
    try transport.setStatus(status.union(.driverOK))
    guard try transport.status().contains(.driverOK) else { throw .refused("the device did not accept DRIVER_OK") }
  }

  private func setUp(_ index: Int, _ ring: RingMemory, _ lines: QueueLines) throws(DriverError) -> QueueSetup {
    try QueueSetup(
      index: index, ring: ring, lines: lines, memory: transport.memory, features: features,
      indirectTables: options.indirectTables, indirectEntries: options.indirectEntries,
      notify: features.contains(.notificationData) ? transport.notifyRegister : nil)
  }

  /// Takes one queue down and sets it up again, elsewhere in memory, while the others continue (RING_RESET, virtio 2.6.1).
  /// What is in flight on it will not be answered.
  ///
  /// - Parameter size: entries of its new ring; `nil`: as many as before.
  /// - Returns: the new parts of the queue.
  public func resetQueue(_ index: Int, size: UInt16? = nil) throws(DriverError) -> QueueSetup {
    guard features.contains(.ringReset) else { throw .badRequest("the device does not offer RING_RESET") }
    let old = queues[index]
    let size = size ?? old.ring.layout.size
    let maximum = maximumSizes[index]
    guard size <= maximum, RingLayout.allows(size, format) else {
      throw .badQueueSize(queue: index, size, maximum: maximum, format)
    }
    try transport.resetQueue(index)
    // Before the old one is freed, so that it lies elsewhere.
    let ring = try RingMemory(size: size, format: format, shape: .separate, in: transport.memory)
    try release(old)
    queues[index] = try setUp(index, ring, old.lines)
    try transport.enableQueue(index, ring.layout.configuration)
    return queues[index]
  }

  /// Resets the device, takes the queues down and frees their memory, unless something wrote next to it.
  public func shutDown() throws(DriverError) {
    try transport.reset()
    try transport.deleteQueues()
    for queue in queues { try release(queue) }
    queues = []
  }

  /// Frees the memory of a queue that the device has released.
  private func release(_ queue: QueueSetup) throws(DriverError) {
    if let address = queue.ring.damage(in: transport.memory) {
      throw .fault(.strayWrite(address, near: "next to the ring of queue \(queue.index)"))
    }
    queue.ring.release(to: transport.memory)
    for tables in queue.indirectTables {
      if let address = transport.memory.damage(around: tables) {
        throw .fault(.strayWrite(address, near: "next to the indirect tables of queue \(queue.index)"))
      }
      transport.memory.release(tables)
    }
  }

  /// Tells the device that the driver cannot continue (virtio 3.1.1).
  private func giveUp() throws(DriverError) { try transport.setStatus(status.union(.failed)) }
}
