/// What a device is to a transport. A transport knows no more about a disk than this, and a disk no more about transports.

/// Something that happened to a running device: the answer to what its transport asked for, or news to pass on.
public enum DeviceEvent: Hashable, Sendable {
  /// The answer to `start`: the queue runs.
  case started(queue: Int)
  /// The answer to `start`: the queue does not run, and this is why. A stop that was requested in the meantime has no other
  /// answer.
  case notStarted(queue: Int, QueueError)
  /// The answer to `stop`: everything that was in flight is finished, and the queue stands here.
  case stopped(queue: Int, QueuePosition)
  /// The answer to `prepare`: starts of those queues have nothing slow to do any more.
  case prepared
  /// The answer to `prepare`: this is why not, and nothing that it had made is left.
  case notPrepared(QueueError)
  /// The queue met input it cannot continue after: it takes nothing more, but has to be stopped all the same. The transport
  /// sets DEVICE_NEEDS_RESET (virtio 2.1.2) or signals the ring's error descriptor.
  case queueFailed(queue: Int, QueueError)
  /// The queue waits for a translation of this; it takes nothing more before `translate`. Of a driver behind an IOMMU.
  case translationMissed(queue: Int, TranslationMiss)
  /// The answer to `withdraw`: the queue uses nothing any more of what was taken back.
  case withdrawn(queue: Int)
  /// The configuration space changed: a configuration change notification is due.
  case configurationChanged
  /// The operator should know: one sentence.
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

/// The control plane of one device. All methods are called from one thread, the transport's, and none of them waits for
/// anybody: not for the medium, not for a driver, not for a thread of the device's. Queues run on threads of the device's own.
///
/// A queue is started, answers, runs, is asked to stop, answers, and only then may be started again. `AttendedDevice` keeps
/// that account for a transport.
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
  /// Where in the configuration space the byte is that a driver may write; `nil` when there is none.
  var writableByte: UInt8? { get }
  /// A write of the driver.
  /// - Returns: false when nothing was written because the bytes are not, or not all, the driver's to write.
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool

  /// Makes ready what is slow about starting these queues, threads and engines, so that a later start is quick and has nothing
  /// left to fail for but the ring itself. Answered, for all of them together, with `prepared` or `notPrepared`; not asked for
  /// again before that. What was made waits, without using a CPU, for the first start or for `unprepare`. For a queue
  /// that runs nothing changes.
  ///
  /// - Parameters:
  ///   - memory: what the queues will be started with.
  ///   - kind: that they will be of. Others can be started all the same, as if nothing were prepared.
  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind)
  /// Releases what was prepared and not started, and of an answer that is still to come. There is no answer to this.
  func unprepare()
  /// Asks that a queue be started; it looks at its ring once without waiting for a kick. Answered with `started` or
  /// `notStarted`. Starting a queue that was not stopped is our own mistake.
  func start(_ activation: Activation)
  /// Lets a queue begin that was started held (`Activation.isHeld`): it looks at its ring without waiting for a kick. Nobody is
  /// notified: who had the ring before has told the driver of all that it answered. Of a queue that is not held nothing
  /// changes.
  func release(queue: Int)
  /// Asks that a queue be stopped: it takes nothing more, finishes what is in flight, publishes it and notifies. Answered with
  /// `stopped`. Asked twice it is one stop; of a queue that was not started it is none, without an answer.
  func stop(queue: Int)
  /// Gives up waiting for a queue, whose answer may never come (its medium hangs). It is stopped if the medium ever answers;
  /// until then it stays behind with all that it holds, on a thread of its own. Nothing is heard of it any more, and it cannot
  /// be started before it has ended.
  func leave(queue: Int)
  /// Queues that were left and have not ended yet.
  var leftQueues: Set<Int> { get }
  /// These translations are in force for a queue that was started with `GuestMemory.init(_:translatedBy:)`; one that waits for
  /// a translation tries again. Older ones than it has change nothing. Without an answer.
  ///
  /// - Parameter refused: an access that was asked for and is not allowed; where it is what the queue missed last, the request that
  ///   needs it fails.
  func translate(queue: Int, by translations: Translations, refused: TranslationMiss?)
  /// Takes translations back from such a queue, which runs. Answered with `withdrawn` when nothing of it that was taken with them is
  /// in flight: as with a stop, all of that is finished and published first, but for what waits for the operator, which fails.
  func withdraw(queue: Int, _ withdrawal: Withdrawal)
  /// Notifies through another sink from now on, and once at once.
  func replaceCall(queue: Int, _ call: CallSink)
  /// Notifies failure through another sink from now on.
  func replaceFailure(queue: Int, _ failure: CallSink)
  /// Puts the configuration back to its defaults. Every queue was stopped before.
  func reset()
  /// A driver has reset the device: with `reset`, which is also called where a driver continues through another server. What was asked
  /// for before and not answered is nobody's any more. Waits for nothing.
  func forgetDriver()

  /// Readable (level) while `takeEvents` would return something; an eventfd that the device owns.
  var eventDescriptor: Int32 { get }
  /// What happened since the last call.
  func takeEvents() -> [DeviceEvent]
}

extension VirtioDevice {
  public var writableByte: UInt8? { nil }
  public func forgetDriver() {}
  /// Of a device that does not offer ACCESS_PLATFORM no queue is started with translations.
  public func translate(queue: Int, by translations: Translations, refused: TranslationMiss?) {}
  public func withdraw(queue: Int, _ withdrawal: Withdrawal) {}
}
