/// The limits that an operator sets for a disk: requests and bytes per second.

/// A rate, and the burst that may exceed it.
public struct RateLimit: Hashable, Sendable {
  /// Requests, or bytes, a second: 1 … 10^15.
  public let perSecond: UInt64
  /// What may be done at once after an idle period, in the same unit; at least 1.
  public let burst: UInt64

  /// - Parameters:
  ///   - perSecond: 0 counts as 1, and more than 10^15 as 10^15.
  ///   - burst: `nil`: a tenth of a second's worth.
  public init(perSecond: UInt64, burst: UInt64? = nil) {
    self.perSecond = min(max(perSecond, 1), 1_000_000_000_000_000)
    self.burst = min(max(burst ?? self.perSecond / 10, 1), 1_000_000_000_000_000)
  }
}

/// The limits of one disk, for all of its queues together; `nil`: none. If several apply to a request, it has to satisfy all of
/// them.
///
/// Reads are READ requests. Writes are WRITE, DISCARD and WRITE_ZEROES requests, the last two without bytes. Other requests are
/// never throttled.
public struct RateLimits: Hashable, Sendable {
  /// Reads a second.
  public var readIOPS: RateLimit?
  /// Writes a second.
  public var writeIOPS: RateLimit?
  /// Reads and writes a second, together.
  public var totalIOPS: RateLimit?
  /// Bytes of reads a second.
  public var readBytes: RateLimit?
  /// Bytes of writes a second.
  public var writeBytes: RateLimit?
  /// Bytes of reads and writes a second, together.
  public var totalBytes: RateLimit?

  /// Without limits.
  public init() {}

  /// Whether nothing is limited.
  public var isEmpty: Bool { self == RateLimits() }
}
