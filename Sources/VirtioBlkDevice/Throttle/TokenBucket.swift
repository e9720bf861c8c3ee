/// A rate limit, kept as a moment: the earliest time at which the next request may start.

/// A token bucket. Tokens flow in at the limit's rate, and the bucket holds at most the burst. A request starts as soon as the
/// bucket is not in debt, whatever it takes; later requests pay what it takes too much. So no request is too large to ever
/// start.
struct TokenBucket {
  private let rate: UInt64
  /// The time in which the burst's tokens flow in, nanoseconds.
  private let burst: UInt64
  /// When the bucket is exactly empty, neither in debt nor with tokens: nanoseconds of some clock.
  private(set) var ready: UInt64

  /// - Parameters:
  ///   - now: nanoseconds of a clock that never goes back.
  ///   - isFull: whether it starts with its burst, or empty.
  init(_ limit: RateLimit, now: UInt64, isFull: Bool) {
    rate = limit.perSecond
    burst = Self.time(limit.burst, rate: limit.perSecond)
    ready = isFull ? now - min(now, burst) : now
  }

  /// Takes tokens, on credit if necessary.
  mutating func take(_ tokens: UInt64, now: UInt64) {
    let (sum, overflow) = max(ready, now - min(now, burst)).addingReportingOverflow(Self.time(tokens, rate: rate))
    ready = overflow ? .max : sum
  }

  /// The time in which tokens flow in, nanoseconds.
  private static func time(_ tokens: UInt64, rate: UInt64) -> UInt64 {
    let (high, low) = tokens.multipliedFullWidth(by: 1_000_000_000)
    return high < rate ? rate.dividingFullWidth((high, low)).quotient : .max
  }
}
