/// How a worker waits when there is nothing to do.

public enum Waiting: Hashable, Sendable {
  /// Sleep at once.
  case sleep
  /// Poll for this long, then sleep. Microseconds.
  case poll(microseconds: Int)
  /// Poll for as long as that pays off, at most this long. Microseconds.
  case adaptive(maximumMicroseconds: Int)
  /// Never sleep: the queue uses a whole CPU.
  case busy
}

/// How often the driver is notified of completed requests.
public enum Notification: Hashable, Sendable {
  /// After each request.
  case each
  /// After each batch that a turn completes.
  case batch
  /// After `count` requests, or this long after the first of them, whichever comes first. Microseconds.
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

  /// Work came `slept` nanoseconds after the worker had stopped polling. If polling within the maximum would have found it, the
  /// window opens by a step. Otherwise it closes by a step.
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
