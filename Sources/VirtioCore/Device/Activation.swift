/// Everything that one queue needs to run, as a transport hands it to a device.

/// How the driver tells the device that there are new buffers (an available buffer notification).
public enum KickSource: Sendable {
  /// An eventfd that the driver's side signals.
  case eventCounter(OwnedDescriptor)
  /// A counter in shared memory.
  case doorbell(Doorbell)
  /// The driver never kicks: the device has to poll.
  case none
}

/// One queue, ready to be started. Plain data: the numbers in `configuration` are the driver's and still unchecked.
public struct Activation: Sendable {
  /// 0 … queueCount − 1.
  public var queue: Int
  /// The memory in which the guest's addresses are resolved. It stays mapped for as long as the queue runs.
  public var memory: GuestMemory
  /// The negotiated features.
  public var features: FeatureSet
  /// Size and addresses of the ring, as the transport has them. They are checked when the queue is started.
  public var configuration: QueueConfiguration
  /// Where the queue begins: 0 for a new one, or the position that an earlier run returned when it was stopped.
  public var position: QueuePosition
  /// How the driver signals new requests.
  public var kick: KickSource
  /// How the driver is told that requests were completed.
  public var call: CallSink
  /// Signalled once when the queue breaks (vhost-user's err descriptor).
  public var failure: CallSink
  /// Publish used entries in the order in which the chains were made available, so that `used.idx` alone says what is done.
  /// Needed if a device must be able to restart from guest memory alone.
  public var publishesInOrder: Bool
  /// Where the queue records the chains that it has popped and not yet completed, and finds those left over when it starts;
  /// `nil`: nowhere. The region is that of `queue`. Of the queues of a device that run at one time, all have it or none.
  public var inflight: InflightMemory?

  /// Where the pages of guest memory that the device has written to are logged; `nil`: nowhere.
  public var log: QueueLog?

  /// Start it in full, but pop nothing from the ring and publish nothing before `VirtioDevice.release`. A stop before that
  /// answers with the position that was given, and has changed nothing for the driver or for whichever device continues from
  /// there.
  public var isHeld = false

  /// Is told of what happens on the queue, on the thread that serves it; `nil`: nobody is. Of the queues of a device that run
  /// at one time, all have one or none.
  public var watch: (any RingWatch)?

  /// Notify the driver once at the start, because a previous device may have died between publishing used entries and
  /// notifying. `false`: the caller does that.
  public var notifiesAtStart = true

  /// The parameters are the properties of the same names; what has no parameter keeps its default.
  public init(
    queue: Int, memory: GuestMemory, features: FeatureSet, configuration: QueueConfiguration,
    position: QueuePosition = QueuePosition(), kick: KickSource, call: CallSink, failure: CallSink = .none,
    publishesInOrder: Bool = false, inflight: InflightMemory? = nil, log: QueueLog? = nil
  ) {
    self.queue = queue
    self.memory = memory
    self.features = features
    self.configuration = configuration
    self.position = position
    self.kick = kick
    self.call = call
    self.failure = failure
    self.publishesInOrder = publishesInOrder
    self.inflight = inflight
    self.log = log
  }
}
