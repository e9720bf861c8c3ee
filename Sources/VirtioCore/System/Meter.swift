/// A rate limit for log lines that a guest or a front-end can cause.

/// A rate limit for log lines that a guest can cause as often as it likes.
///
/// Lets a burst through and then one line per interval, counting those it held back. It has no clock: the caller passes the
/// time.
public struct Meter: Sendable {
  /// The answer for one line.
  public enum Verdict: Hashable, Sendable {
    /// Write it. - heldBack: how many were held back since the last one that passed.
    case pass(heldBack: Int)
    /// Do not write it: there have been too many lately.
    case hold
  }

  private let burst: Int
  private let interval: Duration
  private var left: Int
  private var refilled: ContinuousClock.Instant?
  private var heldBack = 0

  /// - Parameters:
  ///   - burst: how many may pass at once; at least 1.
  ///   - interval: the time after which one more may pass.
  public init(burst: Int = 10, interval: Duration = .seconds(5)) {
    precondition(burst > 0 && interval > .zero)
    self.burst = burst
    self.interval = interval
    self.left = burst
  }

  /// Whether a line may be written now.
  public mutating func ask(at now: ContinuousClock.Instant = .now) -> Verdict {
    let since = refilled ?? now
    let earned = Int(clamping: Int64((now - since) / interval))
    if left + earned >= burst {
      left = burst
      refilled = now
    } else {
      left += earned
      refilled = since + interval * earned
    }
    guard left > 0 else {
      heldBack += 1
      return .hold
    }
    left -= 1
    defer { heldBack = 0 }
    return .pass(heldBack: heldBack)
  }
}
