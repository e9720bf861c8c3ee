/// A rate as a moment: the one from which on the next request may go.

/// A token bucket. Tokens flow in at the limit's rate, as many as its burst stay. A request goes as soon as the bucket is not
/// in debt, whatever it takes, and what it takes too much is paid by those that come after it: so there is no request that is too
/// large to ever go.
struct TokenBucket {
  private let rate: UInt64
  /// The time in which the burst flows in, nanoseconds.
  private let burst: UInt64
  /// When the bucket is neither in debt nor has anything: nanoseconds of some clock.
  private(set) var ready: UInt64

  /// - Parameters:
  ///   - now: nanoseconds of a clock that never goes back, as everywhere here.
  ///   - isFull: with its burst; otherwise with nothing.
  init(_ limit: RateLimit, now: UInt64, isFull: Bool) {
    rate = limit.perSecond
    burst = Self.time(limit.burst, rate: limit.perSecond)
    ready = isFull ? now - min(now, burst) : now
  }

  /// Takes tokens, on credit if need be.
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
