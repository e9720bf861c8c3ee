/// What a disk has done and how long it took, for monitoring.

/// The kinds of requests whose times are recorded separately. `ArrivalKind` has the same numbers.
public enum RequestKind: Int, CaseIterable, Sendable {
  /// IN.
  case read
  /// OUT.
  case write
  /// FLUSH.
  case flush
  /// DISCARD.
  case discard
  /// WRITE_ZEROES.
  case writeZeroes
  /// GET_ID, GET_LIFETIME, SECURE_ERASE, zone commands and reports, unknown types, and requests without a whole header.
  case other
}

/// Figures of one disk since it was made, all queues together. They are read word by word while queues run: each is exact, but
/// two of them may be a few requests apart.
public struct BlockMetrics: Hashable, Sendable {
  /// What was requested, and how it ended.
  public var counters = BlockCounters()
  /// How long requests took, by kind: from popping one to publishing its answer, whatever the answer was. Empty if times are
  /// not recorded.
  ///
  /// The time is read once for each batch, so each may be off by the length of one turn of the queue's thread, or by the time
  /// of 32 requests with an engine that does the copying itself.
  public var latencies: [RequestKind: LatencyHistogram] = [:]
  /// Requests popped and not yet answered, one number for each queue. Empty if times are not recorded.
  public var depths: [Int] = []

  /// Of a disk that has not done anything yet.
  public init() {}

  /// Requests popped and not yet answered, all queues together.
  public var depth: Int { depths.reduce(0, +) }
}
