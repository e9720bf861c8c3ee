/// Lines that a guest can cause at its pleasure must not fill a disk: so many in a while, and a count of the rest.
internal import Synchronization

/// Lets a burst of lines through and then a steady few.
final class LineMeter: Sendable {
  private struct State {
    var tokens: Int
    var refilled: ContinuousClock.Instant
    var dropped = 0
  }

  private let burst: Int
  private let interval: Duration
  private let state: Mutex<State>

  /// - Parameters:
  ///   - burst: lines at once, at least 1.
  ///   - interval: after which one more is allowed.
  init(burst: Int = 10, interval: Duration = .seconds(5)) {
    self.burst = burst
    self.interval = interval
    state = Mutex(State(tokens: burst, refilled: .now))
  }

  /// - Returns: the line to print, with a word about those before it that were not; `nil` for one that is not to be.
  func admit(_ line: String, now: ContinuousClock.Instant = .now) -> String? {
    state.withLock { state in
      let earned = Int((now - state.refilled) / interval)
      if earned > 0 {
        state.tokens = min(burst, state.tokens + earned)
        state.refilled = now
      }
      guard state.tokens > 0 else {
        state.dropped += 1
        return nil
      }
      state.tokens -= 1
      defer { state.dropped = 0 }
      return state.dropped == 0 ? line : "\(line) (and \(state.dropped) lines before it that were not printed)"
    }
  }
}
