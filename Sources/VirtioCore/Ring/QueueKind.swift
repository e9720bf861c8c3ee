/// Which ring type a queue needs: chosen in one place, below which everything is statically typed.

/// Which ring type a queue needs.
///
/// All queues of a device that run at one time have the same kind: features belong to the device, and a front-end that keeps
/// in-flight records keeps them for all queues.
public struct QueueKind: Hashable, Sendable {
  /// A packed ring, not a split one (VIRTIO_F_RING_PACKED).
  public var isPacked: Bool
  /// Requests in flight are recorded for a successor.
  public var isRecorded: Bool
  /// A watch observes the queue.
  public var isWatched: Bool

  /// The parameters are the properties of the same names.
  public init(isPacked: Bool, isRecorded: Bool, isWatched: Bool = false) {
    self.isPacked = isPacked
    self.isRecorded = isRecorded
    self.isWatched = isWatched
  }
}

extension Activation {
  /// The kind of queue that it needs.
  public var kind: QueueKind {
    QueueKind(isPacked: features.contains(.packedRing), isRecorded: inflight != nil, isWatched: watch != nil)
  }
}
