/// The interface between a transport and a device. A transport knows no more about a disk than this, and a disk no more about a
/// transport.

/// An event of a running device: the answer to a request of its transport, or news to pass on.
public enum DeviceEvent: Hashable, Sendable {
  /// The answer to `start`: the queue runs.
  case started(queue: Int)
  /// The answer to `start`: the queue does not run, and this is why. It is also the only answer to a stop requested in the
  /// meantime.
  case notStarted(queue: Int, QueueError)
  /// The answer to `stop`: everything that was in flight is completed, and this is the queue's position.
  case stopped(queue: Int, QueuePosition)
  /// The answer to `prepare`: the slow part of starting those queues is done.
  case prepared
  /// The answer to `prepare`: it failed for this reason, and everything that it had made is released.
  case notPrepared(QueueError)
  /// The queue met input after which it cannot continue: it pops nothing more, but still has to be stopped. The transport sets
  /// DEVICE_NEEDS_RESET (virtio 2.1.2) or signals the ring's error descriptor.
  case queueFailed(queue: Int, QueueError)
  /// The queue waits for a translation for this access, and pops nothing more before `translate`. Only with a driver behind an
  /// IOMMU.
  case translationMissed(queue: Int, TranslationMiss)
  /// The answer to `withdraw`: the queue no longer uses any of the withdrawn translations.
  case withdrawn(queue: Int)
  /// The configuration space changed: a configuration change notification is due.
  case configurationChanged
  /// A message for the operator: one sentence.
  case notice(String)
}

extension DeviceEvent {
  /// An answer to `prepare`.
  public var isPreparation: Bool {
    switch self {
    case .prepared, .notPrepared: true
    default: false
    }
  }
}

/// The control plane of one device. All methods are called from one thread, the transport's, and none of them blocks: not on
/// the medium, not on a driver, not on a thread of the device. Queues run on the device's own threads.
///
/// A queue is started, answers, runs, is asked to stop, answers, and only then may be started again. `AttendedDevice` keeps
/// track of that for a transport.
public protocol VirtioDevice: AnyObject, Sendable {
  /// The virtio device ID (virtio 5): 2 for a block device.
  var deviceID: UInt32 { get }
  /// The feature bits that it offers.
  var features: FeatureSet { get }
  /// How many queues there are; at least 1.
  var queueCount: Int { get }
  /// The largest ring size of each queue, a power of two.
  var maximumQueueSize: UInt16 { get }
  /// Bytes of the device-specific configuration space.
  var configurationSize: Int { get }
  /// Changes whenever the configuration has changed since it was last read (virtio 2.4.1).
  var configurationGeneration: UInt32 { get }

  /// Whether the device can work with the features that a driver chose (FEATURES_OK, virtio 3.1.1).
  func accepts(_ features: FeatureSet) -> Bool
  /// Tells the device the driver's choice, which it accepted before; the initial values of some configuration fields depend on
  /// it (virtio 5.2.5.2).
  func negotiated(_ features: FeatureSet)

  /// Bytes of the configuration space; those beyond its end read as zero. Any offset, any count.
  func readConfiguration(at offset: Int, count: Int) -> [UInt8]
  /// The offset in the configuration space of the byte that a driver may write; `nil` if there is none.
  var writableByte: UInt8? { get }
  /// A write of the driver.
  /// - Returns: false if nothing was written because the driver may not write all of these bytes.
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool

  /// Does the slow part of starting these queues (threads and engines) in advance, so that a later start is quick and can fail
  /// only because of the ring itself. Answered once, for all of them together, with `prepared` or `notPrepared`, and not called
  /// again before that. What was made waits, without using a CPU, for the first start or for `unprepare`. Queues that run are
  /// not affected.
  ///
  /// - Parameters:
  ///   - memory: the memory that the queues will be started with.
  ///   - kind: the kind that they will have. Queues of another kind can still be started, as if nothing were prepared.
  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind)
  /// Releases what was prepared and not started, and cancels a pending answer. There is no answer to this.
  func unprepare()
  /// Asks for a queue to be started; it looks at its ring once without waiting for a kick. Answered with `started` or
  /// `notStarted`. Starting a queue that was not stopped is a programming error.
  func start(_ activation: Activation)
  /// Lets a queue that was started held (`Activation.isHeld`) begin: it looks at its ring without waiting for a kick. The
  /// driver is not notified: the previous owner of the ring has notified it of all that it completed. Has no effect on a queue
  /// that is not held.
  func release(queue: Int)
  /// Asks for a queue to be stopped: it pops nothing more, completes what is in flight, publishes it and notifies. Answered
  /// with `stopped`. Calling it twice makes one stop; for a queue that was not started it does nothing, and there is no answer.
  func stop(queue: Int)
  /// Gives up waiting for a queue whose answer may never come because its medium hangs. It stops if the medium ever answers;
  /// until then it stays behind with everything that it holds, on its own thread. It sends no more events, and cannot be
  /// started before it has ended.
  func leave(queue: Int)
  /// Queues that were given up with `leave` and have not ended yet.
  var leftQueues: Set<Int> { get }
  /// Puts these translations in force for a queue that was started with `GuestMemory.init(_:translatedBy:)`; if it waits for a
  /// translation, it tries again. Translations older than those it has are ignored. There is no answer.
  ///
  /// - Parameter refused: an access that was requested and is not allowed; if it is the one the queue missed last, the request
  ///   that needs it fails.
  func translate(queue: Int, by translations: Translations, refused: TranslationMiss?)
  /// Takes translations back from such a queue while it runs. Answered with `withdrawn` when no request that used them is in
  /// flight: as with a stop, such requests are completed and published first, except that those waiting for the operator fail.
  func withdraw(queue: Int, _ withdrawal: Withdrawal)
  /// Notifies the driver through another sink from now on, and once immediately.
  func replaceCall(queue: Int, _ call: CallSink)
  /// Signals a failure of the queue through another sink from now on.
  func replaceFailure(queue: Int, _ failure: CallSink)
  /// Resets the configuration to its defaults. Every queue must have been stopped.
  func reset()
  /// Tells the device that the driver has reset it. Called together with `reset`, which is also called if the driver continues
  /// with another server. What the device still remembers of its earlier requests is dropped. Does not block.
  func forgetDriver()

  /// Readable (level-triggered) while `takeEvents` would return something; an eventfd that the device owns.
  var eventDescriptor: Int32 { get }
  /// Events since the last call.
  func takeEvents() -> [DeviceEvent]
}

extension VirtioDevice {
  public var writableByte: UInt8? { nil }
  public func forgetDriver() {}
  /// A device that does not offer ACCESS_PLATFORM has no queues with translations.
  public func translate(queue: Int, by translations: Translations, refused: TranslationMiss?) {}
  public func withdraw(queue: Int, _ withdrawal: Withdrawal) {}
}
