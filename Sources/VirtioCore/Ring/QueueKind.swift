/// Which of the ring types a queue needs: chosen in one place, below which everything is statically typed.

/// Which of the ring types a queue needs.
///
/// All queues of a device that run at one time are of one kind: features are the device's, and a front-end that keeps records
/// keeps all.
public struct QueueKind: Hashable, Sendable {
  /// A packed ring, not a split one (VIRTIO_F_RING_PACKED).
  public var isPacked: Bool
  /// What is in flight is recorded for a successor.
  public var isRecorded: Bool
  /// What the driver does is watched.
  public var isWatched: Bool

  /// The parameters are the properties of the same names.
  public init(isPacked: Bool, isRecorded: Bool, isWatched: Bool = false) {
    self.isPacked = isPacked
    self.isRecorded = isRecorded
    self.isWatched = isWatched
  }
}

extension Activation {
  /// What it needs.
  public var kind: QueueKind {
    QueueKind(isPacked: features.contains(.packedRing), isRecorded: inflight != nil, isWatched: watch != nil)
  }
}
