/// What a disk has done and how long it took: for those who watch it.

/// What a request asks for, as its times are kept. `ArrivalKind` has the same numbers.
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
  /// GET_ID, types that no device knows, and requests without a whole header.
  case other
}

/// Figures of one disk since it was made, all queues together. They are read while queues run, word by word: each is exact, and
/// two of them may be a few requests apart.
public struct BlockMetrics: Hashable, Sendable {
  /// What was requested and what became of it.
  public var counters = BlockCounters()
  /// How long requests took, by kind: from popping one to publishing its answer, whatever the answer was. Empty if times are
  /// not recorded.
  ///
  /// The time is read once for each batch, so that each may be wrong by as long as a turn of the queue's thread takes, or what
  /// 32 requests take with an engine that copies itself.
  public var latencies: [RequestKind: LatencyHistogram] = [:]
  /// Requests that were popped and are not answered, one number for each queue. Empty if times are not recorded.
  public var depths: [Int] = []

  /// Nothing was done yet.
  public init() {}

  /// Requests popped and not yet answered.
  public var depth: Int { depths.reduce(0, +) }
}
