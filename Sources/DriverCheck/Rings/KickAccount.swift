/// When the device of a queue slept, and the kicks that came.
internal import Synchronization
internal import VirtioCore

/// Shared by the thread that serves a queue and the one that relays its kicks.
///
/// Only waiting distinguishes a missing kick from a late one, so the wait is long. A few unwanted kicks are acceptable: a
/// driver may have decided on them before.
final class KickAccount: Sendable {
  private struct State {
    /// The device has enabled kicks, and has not checked the ring since.
    var isAsleep = false
    /// When something was found in the ring without a kick, nanoseconds.
    var unkickedSince: UInt64?
    var isTold = false
    /// The device has disabled kicks, and this many came since.
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

  /// How many unwanted kicks in a row are acceptable: this many CPUs may have been about to kick.
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

  // MARK: From the device

  func begins() { state.withLock { $0 = State() } }

  func wakes() { state.withLock { ($0.isAsleep, $0.unkickedSince) = (false, nil) } }

  /// From the first chain on, the device wants no kick.
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

  // MARK: From the relay

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
        superfluous, queue: queue, "the kick", "\(state.unwanted) kicks came in a row while the device wanted none")
    }
  }

  /// A kick is due as soon as something is in the ring.
  var isAwaiting: Bool { state.withLock { $0.isAsleep && !$0.isTold && missing != nil } }

  /// Checks whether a kick is due.
  ///
  /// - Parameter hasMore: whether something is in the ring that the device has not popped.
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
        "the device sleeps and has asked for kicks; a chain has been available for \(limit / 1_000_000_000) s and no kick came")
    }
  }
}
