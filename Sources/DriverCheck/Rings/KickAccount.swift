/// When the device of a queue slept, and the kicks that came.
internal import Synchronization
internal import VirtioCore

/// Shared by the thread that serves a queue and the one that passes its kicks on.
///
/// A kick that does not come can only be told from one that is late by waiting, so the wait is long. Of kicks that nobody
/// wanted a few are in order: a driver may have decided on them before.
final class KickAccount: Sendable {
  private struct State {
    /// The device has asked for kicks, and has not looked since.
    var isAsleep = false
    /// When something lay in the ring that nobody had kicked for, nanoseconds.
    var unkickedSince: UInt64?
    var isTold = false
    /// The device has asked for none, and so many came since.
    var isSuppressed = false
    var unwanted: UInt64 = 0
  }

  let queue: Int
  private let findings: DriverFindings
  private let state = Mutex(State())
  /// The rules for a kick that is missing and for one too many; `nil`: none is about this kind of ring.
  private let missing: String?
  private let superfluous: String?
  /// Nanoseconds that a kick may take.
  private let limit: UInt64

  /// Kicks in a row that may come although nobody wants one: so many CPUs may have been about to kick.
  static let unwantedInOrder: UInt64 = 64

  init(_ queue: Int, _ features: FeatureSet, _ findings: DriverFindings, limit: Duration) {
    self.queue = queue
    self.findings = findings
    self.limit = UInt64(clamping: Int(limit / .nanoseconds(1)))
    let hasIndex = features.contains(.eventIndex)
    let isPacked = features.contains(.packedRing)
    missing = isPacked ? "i.driver.kick" : hasIndex ? "d.split.availnotif.6" : "d.split.availnotif.4"
    superfluous = isPacked ? nil : hasIndex ? "d.split.availnotif.7" : "d.split.availnotif.3"
  }

  // MARK: Of the device

  func begins() { state.withLock { $0 = State() } }

  func wakes() { state.withLock { ($0.isAsleep, $0.unkickedSince) = (false, nil) } }

  /// From the first chain on it wants no kick.
  func takes() {
    state.withLock { state in
      guard !state.isSuppressed else { return }
      (state.isSuppressed, state.unwanted) = (true, 0)
    }
  }

  func sleeps() {
    state.withLock { state in
      (state.isAsleep, state.unkickedSince, state.isTold) = (true, nil, false)
      guard state.isSuppressed else { return }
      state.isSuppressed = false
      if let superfluous, state.unwanted <= Self.unwantedInOrder { findings.kept(superfluous) }
    }
  }

  // MARK: Of the one who passes kicks on

  /// - Parameter count: at least 1.
  func kicked(_ count: UInt64) {
    state.withLock { state in
      if state.isAsleep {
        if let missing { findings.kept(missing) }
        (state.isAsleep, state.unkickedSince) = (false, nil)
        return
      }
      guard state.isSuppressed, let superfluous else { return }
      let before = state.unwanted
      state.unwanted &+= count
      guard before <= Self.unwantedInOrder, state.unwanted > Self.unwantedInOrder else { return }
      findings.broken(
        superfluous, queue: queue, "the kick", "\(state.unwanted) kicks came in a row while the device had asked for none")
    }
  }

  /// A kick is to come as soon as something lies in the ring.
  var isAwaiting: Bool { state.withLock { $0.isAsleep && !$0.isTold && missing != nil } }

  /// Looks whether a kick is due.
  ///
  /// - Parameter hasMore: whether something lies in the ring that the device has not taken.
  func look(now: UInt64, hasMore: Bool) {
    state.withLock { state in
      guard state.isAsleep, !state.isTold, let missing else { return }
      guard hasMore else {
        state.unkickedSince = nil
        return
      }
      let since = state.unkickedSince ?? now
      state.unkickedSince = since
      guard now &- since >= limit else { return }
      state.isTold = true
      findings.broken(
        missing, queue: queue, "the kick",
        "the device sleeps and has asked for kicks; for \(limit / 1_000_000_000) s something lies in the ring and no kick came")
    }
  }
}
