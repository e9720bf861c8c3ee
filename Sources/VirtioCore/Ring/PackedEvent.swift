/// The event suppression structures of a packed ring (virtio 2.7.14): when each side wants to be notified.

/// One structure as a private copy: 16 bits of offset and wrap counter, 16 bits of flags.
@usableFromInline
struct PackedEvent {
  @usableFromInline let rawValue: UInt32

  @inlinable init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Notify of every event.
  @inlinable static var always: PackedEvent { PackedEvent(rawValue: 0) }
  /// Notify of no event.
  @inlinable static var never: PackedEvent { PackedEvent(rawValue: 1 << 16) }
  /// Notify when this slot is passed (RING_EVENT_FLAGS_DESC); only if the event index was negotiated.
  @inlinable static func passing(_ position: PackedPosition) -> PackedEvent {
    PackedEvent(rawValue: UInt32(position.rawValue) | 2 << 16)
  }

  /// Whether a notification is due (virtio 2.7.14, and the comparison of 2.6.7.1 with the wrap counter folded in).
  ///
  /// - Parameters:
  ///   - position: the position of the notifying side.
  ///   - passed: slots that it has passed since the last decision, at least 1.
  ///   - size: of the ring.
  @inlinable
  func isDue(at position: PackedPosition, passed: UInt64, size: UInt16, hasEventIndex: Bool) -> Bool {
    switch rawValue >> 16 & 3 {
    case 1: return false
    case 2 where hasEventIndex:
      // More than one round: any slot may have been passed. A spurious call is allowed.
      guard passed <= UInt64(size) else { return true }
      let wish = PackedPosition(rawValue: UInt16(truncatingIfNeeded: rawValue))
      // A slot of the previous round lies this far before the start of this one. An offset outside the ring gives an arbitrary
      // value, which does no harm.
      var event = wish.rawValue & 0x7fff
      if wish.wrap != position.wrap { event &-= size }
      return UInt16(truncatingIfNeeded: position.slot) &- event &- 1 < UInt16(truncatingIfNeeded: passed)
    // Undefined values, too: a driver survives a spurious call, but perhaps not a missing one.
    default: return true
    }
  }
}
