/// What an operator allows a disk: requests and bytes per second.

/// A rate, and how far ahead of it a disk may be.
public struct RateLimit: Hashable, Sendable {
  /// Requests, or bytes, a second: 1 … 10^15.
  public let perSecond: UInt64
  /// What may be done at once after an idle period, in the same unit; at least 1.
  public let burst: UInt64

  /// - Parameters:
  ///   - perSecond: 0 counts as 1, and what is above 10^15 as that.
  ///   - burst: `nil`: a tenth of a second's worth.
  public init(perSecond: UInt64, burst: UInt64? = nil) {
    self.perSecond = min(max(perSecond, 1), 1_000_000_000_000_000)
    self.burst = min(max(burst ?? self.perSecond / 10, 1), 1_000_000_000_000_000)
  }
}

/// The limits of one disk, for all of its queues together; `nil`: none. Where several apply to a request, it keeps to all of
/// them.
///
/// Reads are READ requests. Writes are WRITE, DISCARD and WRITE_ZEROES requests, the last two without bytes. Everything else is
/// never held back.
public struct RateLimits: Hashable, Sendable {
  /// Reads a second.
  public var readIOPS: RateLimit?
  /// Writes a second.
  public var writeIOPS: RateLimit?
  /// Reads and writes together.
  public var totalIOPS: RateLimit?
  /// Bytes of reads a second.
  public var readBytes: RateLimit?
  /// Bytes of writes a second.
  public var writeBytes: RateLimit?
  /// Reads and writes together.
  public var totalBytes: RateLimit?

  /// Without limits.
  public init() {}

  /// Nothing is limited.
  public var isEmpty: Bool { self == RateLimits() }
}
