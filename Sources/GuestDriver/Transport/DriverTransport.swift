/// What a driver needs from its device's transport, divided like Linux's `virtio_config_ops`.
public import VirtioCore

/// One device on some transport. One thread at a time calls these methods; the lines of a queue belong to the queue's thread.
public protocol DriverTransport: AnyObject {
  /// The kind of transport, for people.
  var name: String { get }
  /// The memory that the device can reach.
  var memory: DriverMemory { get }

  /// The device's identity (virtio 5); 2 is a block device.
  func deviceID() throws(DriverError) -> UInt32

  /// Bytes of the configuration space. Reads of several bytes are not one access (virtio 2.4.1).
  func readConfiguration(at offset: Int, count: Int) throws(DriverError) -> [UInt8]
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) throws(DriverError)
  /// Differs if the configuration changed in the meantime; constant if the transport has no such counter.
  func configurationGeneration() throws(DriverError) -> UInt32

  func status() throws(DriverError) -> DeviceStatus
  /// Writes the whole status; 0 is for `reset`.
  func setStatus(_ status: DeviceStatus) throws(DriverError)
  /// Resets the device and waits until its status reads 0 (virtio 2.4.2).
  func reset() throws(DriverError)

  func offeredFeatures() throws(DriverError) -> FeatureSet
  func acceptFeatures(_ features: FeatureSet) throws(DriverError)

  /// How many queues there can be.
  func queueCount() throws(DriverError) -> Int
  /// The only layout that the device's rings can have, if it is not the driver's choice.
  var ringShape: RingShape? { get }
  /// The device alone decides how many entries a ring has (virtio 2.6.2).
  var hasFixedQueueSize: Bool { get }
  /// The largest ring of queue `queue`, entries.
  func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16
  /// Sets up queues 0 … n − 1 and connects their lines. The device takes nothing from them before DRIVER_OK.
  func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines]
  /// Where kicks with data go (NOTIFICATION_DATA); `nil` if the transport has no such register.
  var notifyRegister: NotifyRegister? { get }
  /// Takes one queue down while the others continue (RING_RESET, virtio 2.6.1). Afterwards the device touches neither its ring
  /// nor the buffers in it.
  func resetQueue(_ queue: Int) throws(DriverError)
  /// Sets a queue up again that was reset; its lines are as before.
  func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError)
  /// Takes the queues down. Afterwards the device touches neither rings nor buffers.
  func deleteQueues() throws(DriverError)

  /// Shows a hang-up or an error when the device has gone; `nil` if that cannot be detected, or nothing is to be done about it.
  var connectionDescriptor: Int32? { get }
  /// Waits for a device that has gone, and lets it continue where the one before it ended: same memory, rings and features.
  ///
  /// - Parameter standing: where a queue stands, as the driver sees it; called only when no device is there.
  /// - Returns: how many devices were met in the meantime, the last of which is there now; 0 if none had gone.
  func recover(_ standing: (_ queue: Int) -> QueueStanding) throws(DriverError) -> Int

  /// The driver has seen answers since it last reported that. Whatever disturbs the device on purpose lets it complete
  /// something first.
  func noteAnswers()

  /// Waits for a configuration change notification.
  /// - Returns: whether there was one since the last time.
  func waitForConfigurationChange(milliseconds: Int) throws(DriverError) -> Bool
  /// Waits until the device reports that the queue, or the whole device, is broken: DEVICE_NEEDS_RESET or the transport's
  /// equivalent.
  func waitForFailure(queue: Int, milliseconds: Int) throws(DriverError) -> Bool
}

extension DriverTransport {
  public var ringShape: RingShape? { nil }
  public var hasFixedQueueSize: Bool { false }
  public var notifyRegister: NotifyRegister? { nil }
  public var connectionDescriptor: Int32? { nil }
  public func recover(_ standing: (_ queue: Int) -> QueueStanding) -> Int { 0 }
  public func noteAnswers() {}
}
