/// The verbs of a ring, the same for every format. Nothing in them blocks, allocates or notifies.

/// The device's side of one queue. An initialized value is a valid queue: sizes and addresses were checked, and the ring's
/// parts lie in memory that the value keeps mapped.
public protocol Virtqueue: ~Copyable {
  /// Whether it continues where another one was interrupted.
  static var isRecorded: Bool { get }

  /// - Parameter record: where it is written down what is taken; of a kind of queue that is recorded.
  init(
    _ configuration: QueueConfiguration, memory: GuestMemory, features: FeatureSet, position: QueuePosition,
    record: InflightRecord?
  ) throws(QueueError)

  /// Takes the next available chain and resolves its buffers. From the first one on the driver is asked not to kick, as the
  /// device looks at the ring anyway, until `enableKicks`.
  ///
  /// - Parameters:
  ///   - segments: room for `capacity` pieces (1 … 32767); readable ones come first.
  ///   - shape: what the chain comes to, if one is returned.
  /// - Returns: `nil` when nothing is available.
  /// - Throws: the ring is broken; nothing was taken.
  mutating func pop(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain?

  /// Chains that were taken before this value was made, by whoever was interrupted, and are still to be answered.
  var interrupted: Int { get }

  /// Takes the next of those again, as `pop` does, in the order in which they were taken. All of them come before what `pop`
  /// takes: a write must not come after one that the driver gave later.
  ///
  /// - Returns: `nil` when none is left.
  /// - Throws: the ring is broken; the chain is still to be answered.
  mutating func retake(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain?

  /// Writes the used element for a chain; the driver does not see it before `publish`.
  ///
  /// - Parameter written: bytes written from the chain's first writable byte on, without a gap (virtio 2.6.8.2).
  mutating func push(_ chain: consuming Chain, written: UInt32)

  /// The same for a driver that counts on the order of its chains (IN_ORDER, virtio 2.6.9, 2.7.8), in which they have to be
  /// pushed: chains that follow each other may share one used element, which is the last one's.
  ///
  /// - Parameter isWhole: all of the chain's writable bytes were written. The driver takes that to be so of every chain
  ///   without an element of its own, so one that was not is the last of its batch.
  mutating func pushInOrder(_ chain: consuming Chain, written: UInt32, isWhole: Bool)

  /// Chains pushed and not yet published.
  var unpublished: Int { get }

  /// Chains pushed ever, modulo 2^16; from which number on it counts is the queue's own business.
  var pushes: UInt16 { get }

  /// Makes all pushed elements visible to the driver.
  mutating func publish()

  /// Whether the driver has to be notified of what was published since this was asked last (virtio 2.6.7.2).
  mutating func needsCall() -> Bool

  /// Asks the driver to kick from the next chain on.
  ///
  /// - Returns: true when chains became available in the meantime, for which no kick may come: look again before sleeping.
  mutating func enableKicks() -> Bool

  /// Whether `pop` would find something, without asking for kicks.
  mutating func hasAvailable() -> Bool

  /// Says which bytes of the ring this side has written since it was asked last, or may have: for a dirty log.
  ///
  /// - Parameter each: called with a part of the ring, and an offset in it and a count, bytes, a few times.
  mutating func takeWritten(_ each: (_ area: WrittenArea, _ offset: Int, _ count: Int) -> Void)

  /// Where the queue stands.
  var position: QueuePosition { get }
  /// The same, as if so many of the chains that were taken last had not been taken; of a device that answers in the order of
  /// the requests, which has shown no answer of theirs.
  func position(handingBack count: UInt16) -> QueuePosition
  var size: UInt16 { get }

  /// Tells somebody of each step from now on. A ring that cannot be watched ignores it.
  mutating func attach(_ watch: any RingWatch)
}

extension Virtqueue where Self: ~Copyable {
  public mutating func attach(_ watch: any RingWatch) {}
}

/// The parts of a ring that the device writes.
public enum WrittenArea: Sendable {
  /// The used ring of a split queue; the device event suppression structure of a packed one.
  case device
  /// The descriptor ring of a packed queue.
  case descriptors
}
