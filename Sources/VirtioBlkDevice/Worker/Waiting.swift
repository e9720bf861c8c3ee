/// What a worker does when there is nothing to do.

public enum Waiting: Hashable, Sendable {
  /// Sleep at once.
  case sleep
  /// Look for work for so long, then sleep. Microseconds.
  case poll(microseconds: Int)
  /// Look for work for as long as that has been paying off, at most for so long. Microseconds.
  case adaptive(maximumMicroseconds: Int)
  /// Never sleep: a CPU for the queue.
  case busy
}

/// How often the driver is notified of completed requests.
public enum Notification: Hashable, Sendable {
  /// After each request.
  case each
  /// After each batch that a turn completes.
  case batch
  /// After so many requests, or so long after the first of them, whichever comes first. Microseconds.
  case coalesce(count: Int, microseconds: Int)
}

/// The poll window of one worker, in nanoseconds.
struct PollWindow {
  private let maximum: UInt64
  private let isAdaptive: Bool
  private(set) var current: UInt64

  init(_ waiting: Waiting) {
    switch waiting {
    case .sleep: (maximum, isAdaptive, current) = (0, false, 0)
    case .poll(let microseconds):
      (maximum, isAdaptive, current) = (UInt64(microseconds) * 1000, false, UInt64(microseconds) * 1000)
    case .adaptive(let microseconds): (maximum, isAdaptive, current) = (UInt64(microseconds) * 1000, true, 0)
    case .busy: (maximum, isAdaptive, current) = (.max, false, .max)
    }
  }

  /// Whether the worker needs to know how long it slept.
  var learns: Bool { isAdaptive }

  /// Work came `slept` nanoseconds after the worker had stopped looking for it. A look that would have found it is worth
  /// its time: the window opens in steps. One that would have been in vain closes it.
  mutating func learn(slept: UInt64) {
    guard isAdaptive else { return }
    if slept <= current { return }
    if slept < maximum {
      current = min(maximum, max(current * 2, 4000))
    } else {
      current /= 2
      if current < 1000 { current = 0 }
    }
  }
}
