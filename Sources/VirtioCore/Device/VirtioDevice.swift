/// What a device is to a transport. A transport knows no more about a disk than this, and a disk no more about transports.

/// Something that happened to a running device and that its transport has to pass on.
public enum DeviceEvent: Hashable, Sendable {
  /// The queue met input it cannot go on after; it is stopped. The transport sets DEVICE_NEEDS_RESET (virtio 2.1.2) or
  /// signals the ring's error descriptor.
  case queueFailed(queue: Int, QueueError)
  /// The configuration space changed: a configuration change notification is due.
  case configurationChanged
  /// The operator should know: one sentence.
  case notice(String)
}

/// The control plane of one device. All methods are called from one thread, the transport's; queues run on threads of the
/// device's own.
public protocol VirtioDevice: AnyObject, Sendable {
  /// The virtio device ID (virtio 5): 2 for a block device.
  var deviceID: UInt32 { get }
  /// The bits on offer.
  var features: FeatureSet { get }
  /// How many queues there are; at least 1.
  var queueCount: Int { get }
  /// The largest ring size of each queue, a power of two.
  var maximumQueueSize: UInt16 { get }
  /// Bytes of the device-specific configuration space.
  var configurationSize: Int { get }
  /// Differs whenever the configuration changed since it was read last (virtio 2.4.1).
  var configurationGeneration: UInt32 { get }

  /// Whether the device can work with this choice of a driver (FEATURES_OK, virtio 3.1.1).
  func accepts(_ features: FeatureSet) -> Bool
  /// The driver's choice, accepted before; some configuration fields start from it (virtio 5.2.5.2).
  func negotiated(_ features: FeatureSet)

  /// Bytes of the configuration space, zero where it has none. Any offset, any count.
  func readConfiguration(at offset: Int, count: Int) -> [UInt8]
  /// A write of the driver.
  /// - Returns: false when nothing was written because the bytes are not, or not all, the driver's to write.
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool

  /// Starts a queue; it looks at its ring once without waiting for a kick. Starting a running queue is our own mistake.
  func start(_ activation: Activation) throws(QueueError)
  /// Stops a queue: takes nothing more from it, finishes what is in flight, publishes it and notifies.
  /// - Returns: where it stands, or `nil` if it was not running.
  func stop(queue: Int) -> QueuePosition?
  /// Notifies through another sink from now on, and once at once.
  func replaceCall(queue: Int, _ call: CallSink)
  /// Notifies failure through another sink from now on.
  func replaceFailure(queue: Int, _ failure: CallSink)
  /// Stops every queue and puts the configuration back to its defaults.
  func reset()

  /// Readable (level) while `takeEvents` would return something; an eventfd that the device owns.
  var eventDescriptor: Int32 { get }
  /// What happened since the last call.
  func takeEvents() -> [DeviceEvent]
}
