/// The operations of a ring, the same for every format. None of them blocks, allocates or notifies.

/// The device's side of one queue. An initialized value is a valid queue: sizes and addresses were checked, and the ring's
/// parts lie in memory that the value keeps mapped.
public protocol Virtqueue: ~Copyable {
  /// Whether it continues from where a previous queue was interrupted.
  static var isRecorded: Bool { get }

  /// - Parameter record: where taken chains are recorded; for the kinds of queues that have a record.
  init(
    _ configuration: QueueConfiguration, memory: GuestMemory, features: FeatureSet, position: QueuePosition,
    record: InflightRecord?
  ) throws(QueueError)

  /// Takes the next available chain and resolves its buffers. From the first chain until `enableKicks` the driver is asked not
  /// to kick, because the device polls the ring anyway.
  ///
  /// - Parameters:
  ///   - segments: room for `capacity` segments (1 … 32767); readable ones come first.
  ///   - shape: the chain's buffers, if a chain is returned.
  /// - Returns: `nil` if nothing is available.
  /// - Throws: the ring is broken; nothing was taken.
  mutating func pop(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain?

  /// Chains that a previous queue took before it was interrupted, and that have not been answered.
  var interrupted: Int { get }

  /// Takes the next of those again, as `pop` does, in their original order. All of them have to be taken before the first
  /// `pop`: a write must not be executed after one that the driver made available later.
  ///
  /// - Returns: `nil` if none is left.
  /// - Throws: the ring is broken; the chain remains unanswered.
  mutating func retake(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain?

  /// Writes the used element for a chain; the driver cannot see it before `publish`, except after `publishAtPush`.
  ///
  /// - Parameter written: bytes written from the chain's first writable byte on, without a gap (virtio 2.6.8.2).
  mutating func push(_ chain: consuming Chain, written: UInt32)

  /// The same for a driver that relies on the order of its chains (IN_ORDER, virtio 2.6.9, 2.7.8), in which they have to be
  /// pushed: consecutive chains may share one used element, that of the last one.
  ///
  /// - Parameter isWhole: all of the chain's writable bytes were written. The driver assumes this of every chain without an
  ///   element of its own, so a chain that was not written completely ends its batch.
  mutating func pushInOrder(_ chain: consuming Chain, written: UInt32, isWhole: Bool)

  /// Chains pushed and not yet published.
  var unpublished: Int { get }

  /// A running count of pushed chains, modulo 2^16; only differences are meaningful.
  var pushes: UInt16 { get }

  /// Makes all pushed elements visible to the driver.
  mutating func publish()

  /// Whether this kind of ring has `publishAtPush`.
  static var canPublishAtPush: Bool { get }

  /// From now on the driver sees each answer as soon as it is pushed, in one store. `publish` remains due before `needsCall`, and
  /// until then the answer counts as unpublished. For a ring without a record that another process may have to continue: if this
  /// one dies, each answer was given or was not. Before the first `push`; only if `canPublishAtPush`.
  mutating func publishAtPush()

  /// Whether the driver has to be notified of what was published since the last call (virtio 2.6.7.2).
  mutating func needsCall() -> Bool

  /// Asks the driver to kick for the next chain.
  ///
  /// - Returns: true if chains became available in the meantime, for which no kick may come: check again before sleeping.
  mutating func enableKicks() -> Bool

  /// Whether `pop` would find something, without asking for kicks.
  mutating func hasAvailable() -> Bool

  /// Reports the bytes of the ring that the device has, or may have, written since the last call: for a dirty log.
  ///
  /// - Parameter each: called a few times, with a part of the ring, an offset in it and a count, both in bytes.
  mutating func takeWritten(_ each: (_ area: WrittenArea, _ offset: Int, _ count: Int) -> Void)

  /// The queue's position.
  var position: QueuePosition { get }
  /// The same, as if the last `count` chains had not been taken; for a device that answers requests in order and has published
  /// no answer to these.
  func position(handingBack count: UInt16) -> QueuePosition
  /// Descriptors of the ring.
  var size: UInt16 { get }

  /// Reports each step to a watch from now on. Rings other than `WatchedQueue` ignore it.
  mutating func attach(_ watch: any RingWatch)
}

extension Virtqueue where Self: ~Copyable {
  public static var canPublishAtPush: Bool { false }
  public mutating func publishAtPush() { preconditionFailure("this kind of ring publishes in batches") }
  public mutating func attach(_ watch: any RingWatch) {}
}

/// The parts of a ring that the device writes.
public enum WrittenArea: Sendable {
  /// The used ring of a split queue; the device event suppression structure of a packed one.
  case device
  /// The descriptor ring of a packed queue.
  case descriptors
}
