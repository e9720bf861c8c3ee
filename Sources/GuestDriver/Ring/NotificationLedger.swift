/// Keeps account of kicks and calls of one queue: what was requested, what arrived, and what is owed.
internal import VirtioCore

/// The bookkeeping of both kinds of notification (virtio 2.6.7, 2.6.10).
public struct NotificationLedger: Sendable {
  /// What a decision to kick or not was based on.
  enum KickReason: Sendable {
    case none
    case flags(UInt16)
    case event(UInt16, old: UInt16, new: UInt16)
    case packed(EventSuppression, old: RingPosition, new: RingPosition)
  }

  /// How often the device was kicked, and how often a kick was suppressed.
  public private(set) var kicks = 0
  public private(set) var kicksSpared = 0
  /// Calls that arrived.
  public private(set) var calls = 0
  /// Chains reaped.
  public private(set) var reaped = 0

  var call: CallLine
  private var reason = KickReason.none
  private var kicked = false
  private var state = State.open
  private var wasArmed = false
  /// Since when a call is owed: the driver had asked for it, and has seen the used entry without it.
  private var owedSince: ContinuousClock.Instant? = nil
  private var owedEvent: UInt16 = 0
  /// Devices that the lines were connected to, one after the other.
  private var devices = 1

  private enum State {
    /// Calls may come.
    case open
    /// A call is wanted once the used entry at this index is published.
    case armed(UInt16)
    /// No call is wanted. `always`: none ever was on this ring.
    case disarmed(always: Bool)
  }

  /// How late a call may be. A device that forgot it never sends it.
  var patience = Patience.limit

  init(_ lines: QueueLines) { call = CallLine(lines) }

  // MARK: kicks

  mutating func kickDecision(_ reason: KickReason, kicked: Bool) {
    self.reason = reason
    self.kicked = kicked
    if kicked { kicks += 1 } else { kicksSpared += 1 }
  }

  /// The last decision, for messages.
  public var lastKick: String {
    let outcome = kicked ? "so the device was kicked" : "so the device was not kicked"
    return switch reason {
    case .none: "nothing was published yet"
    case .flags(let flags): "used.flags was \(flags) after avail.idx was published, \(outcome)"
    case .event(let event, let old, let new):
      "avail_event was \(event) when avail.idx had gone from \(old) to \(new), \(outcome)"
    case .packed(let event, let old, let new):
      "the device's event suppression was \(event) when the available position had gone from \(old) to \(new), \(outcome)"
    }
  }

  // MARK: calls
  // Used indices here are free-running: of used entries, or of a packed ring's descriptors.

  mutating func countReaped() { reaped += 1 }

  /// - Parameter index: the used entry that the driver wants to be called for.
  mutating func arm(at index: UInt16, usedIndex: UInt16) {
    // An earlier request that was fulfilled unnoticed is settled first, or a missing call for it would go unnoticed.
    if case .armed = state { settle(usedIndex: usedIndex) }
    state = .armed(index)
    wasArmed = true
  }

  mutating func disarm(usedIndex: UInt16) {
    if case .armed = state { settle(usedIndex: usedIndex) }
    switch state {
    case .disarmed: break
    case .open, .armed: state = .disarmed(always: reaped == 0 && !wasArmed)
    }
  }

  /// Takes the calls that have arrived, and checks their number.
  mutating func noteCalls(queue: Int, usedIndex: UInt16) throws(DriverFault) {
    settle(usedIndex: usedIndex)
    if let since = owedSince, .now - since > patience {
      throw .missingCall(queue: queue, usedEvent: owedEvent, usedIndex: usedIndex)
    }
    if case .disarmed(always: true) = state {
      // One call may come when the line is connected, and one when the device begins, since its predecessor may not have made
      // its call; with an event index, the farthest one is reached after 65,535 entries.
      let allowed = 2 * devices + reaped / 65_535
      if calls > allowed { throw .unwantedCalls(queue: queue, count: calls, wanted: allowed) }
    }
  }

  /// Counts further devices that were at the other end of the lines, one after the other.
  mutating func deviceReturned(_ count: Int) { devices += count }

  private mutating func settle(usedIndex: UInt16) {
    let fresh = call.take()
    calls += fresh
    if fresh > 0 { owedSince = nil }
    guard case .armed(let event) = state else { return }
    if fresh > 0 {
      state = .open
    } else if usedIndex &- event &- 1 < 0x8000 {
      owedEvent = event
      owedSince = owedSince ?? .now
      state = .open
    }
  }
}
