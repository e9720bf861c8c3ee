/// Everything that one queue needs to run: what a transport hands to a device.

/// How the driver tells the device that there is something to do (an available buffer notification).
public enum KickSource: Sendable {
  /// An eventfd that the driver's side signals.
  case eventCounter(OwnedDescriptor)
  /// A counter in shared memory.
  case doorbell(Doorbell)
  /// The driver never kicks: the device has to look by itself.
  case none
}

/// One queue, ready to be started. Plain data: the numbers in `configuration` are the driver's and still unchecked.
public struct Activation: Sendable {
  /// 0 … queueCount − 1.
  public var queue: Int
  /// What the guest's addresses are resolved in. It stays mapped for as long as the queue runs.
  public var memory: GuestMemory
  /// What was negotiated.
  public var features: FeatureSet
  /// Size and addresses of the ring, as the transport has them. They are checked when the queue is started.
  public var configuration: QueueConfiguration
  /// Where the queue begins: 0 for a new one, or what an earlier run handed out at its stop.
  public var position: QueuePosition
  /// How the driver says that there are new requests.
  public var kick: KickSource
  /// How the driver learns that requests were answered.
  public var call: CallSink
  /// Signalled once when the queue breaks (vhost-user's err descriptor).
  public var failure: CallSink
  /// Publish used entries in the order in which the chains were made available, so that `used.idx` alone says what is done.
  /// Needed where a device must be able to start again from guest memory and nothing else.
  public var publishesInOrder: Bool
  /// Where the queue writes down what it has taken and not yet answered, and finds what was left when it starts; `nil`:
  /// nowhere. The region is that of `queue`. All queues of a device that run at one time have it, or none.
  public var inflight: InflightMemory?

  /// Where it is written down which pages of guest memory the device has written to; `nil`: nowhere.
  public var log: QueueLog?

  /// Start it in full, but take nothing from the ring and publish nothing before `VirtioDevice.release`. A stop before that
  /// answers with the position that was given, and has changed nothing for the driver or for who continues from there.
  public var isHeld = false

  /// Is notified of what happens on the queue, on the thread that serves it; `nil`: nobody. All queues of a device that run at one
  /// time have one, or none.
  public var watch: (any RingWatch)?

  /// Notify the driver once at the start, if a previous device may have died after publishing answers and before notifying.
  /// `false`: the caller does that.
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
