/// How often something may be said that a guest or a front-end can cause as often as it likes.

/// How often something may be said that a guest can cause as often as it likes.
///
/// Lets a burst through and then one thing every so often, counting what it held back. A value without a clock: the caller
/// passes the time.
public struct Meter: Sendable {
  /// The answer to one question.
  public enum Verdict: Hashable, Sendable {
    /// Say it. - heldBack: how many before it were not said; 0 when none.
    case pass(heldBack: Int)
    /// Do not say it: there have been too many lately.
    case hold
  }

  private let burst: Int
  private let interval: Duration
  private var left: Int
  private var refilled: ContinuousClock.Instant?
  private var heldBack = 0

  /// - Parameters:
  ///   - burst: how many may come at once; at least 1.
  ///   - interval: how long it takes until one more may come.
  public init(burst: Int = 10, interval: Duration = .seconds(5)) {
    precondition(burst > 0 && interval > .zero)
    self.burst = burst
    self.interval = interval
    self.left = burst
  }

  /// Whether to say something now.
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
