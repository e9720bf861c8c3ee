/// A place in a packed ring: which descriptor, and in which of two laps (virtio 2.7.1).

/// Half of a packed ring's state. Transports and event suppression structures hold it as one word.
public struct RingPosition: Hashable, Sendable, CustomStringConvertible {
  /// Bits 0–14: the descriptor; bit 15: the wrap counter.
  public let word: UInt16

  public init(word: UInt16) { self.word = word }

  /// Where both sides begin: the first descriptor, wrap counter 1.
  public static let start = RingPosition(word: 0x8000)

  public var slot: UInt16 { word & 0x7fff }
  public var wrap: Bool { word & 0x8000 != 0 }

  /// - Parameter count: at most `size`.
  public func advanced(by count: UInt16, size: UInt16) -> RingPosition {
    let next = UInt32(slot) + UInt32(count)
    let isWrapped = next >= UInt32(size)
    let slot = UInt16(truncatingIfNeeded: isWrapped ? next - UInt32(size) : next)
    return RingPosition(word: slot | (wrap != isWrapped ? 0x8000 : 0))
  }

  /// The two marks of a descriptor that is available here.
  var availableMarks: UInt16 { wrap ? 0x0080 : 0x8000 }
  /// The two marks of a descriptor that is used here.
  var usedMarks: UInt16 { wrap ? 0x8080 : 0 }
  /// What the lap before left: neither available nor used now.
  var restingMarks: UInt16 { wrap ? 0 : 0x8080 }
  static let marks: UInt16 = 0x8080

  /// Whether the other side is to be notified of what was done from `old` up to `new`: whether that includes `event` (virtio
  /// 2.7.7.1).
  ///
  /// - Parameter event: of the other side's event suppression structure.
  static func needsEvent(_ event: RingPosition, from old: RingPosition, to new: RingPosition, size: UInt16) -> Bool {
    // All three as slots in the lap of `new`; those of the previous lap are negative, and the distances are right modulo 2^16.
    let wanted = event.wrap == new.wrap ? event.slot : event.slot &- size
    let first = old.wrap == new.wrap ? old.slot : old.slot &- size
    return new.slot &- wanted &- 1 < new.slot &- first
  }

  public var description: String { "\(slot) (wrap counter \(wrap ? 1 : 0))" }
}

/// An event suppression structure as it is in memory (virtio 2.7.14).
public struct EventSuppression: Hashable, Sendable, CustomStringConvertible {
  /// Where an event is wanted; a `RingPosition`.
  public var position: UInt16
  public var flags: UInt16

  public static let enable: UInt16 = 0
  public static let disable: UInt16 = 1
  /// At one descriptor; with EVENT_IDX only.
  public static let descriptor: UInt16 = 2

  public init(position: UInt16 = 0, flags: UInt16 = EventSuppression.enable) {
    self.position = position
    self.flags = flags
  }

  /// Whether it is valid for a ring of `size` entries.
  func isLegal(size: UInt16, eventIndex: Bool) -> Bool {
    switch flags {
    case Self.enable, Self.disable: true
    case Self.descriptor: eventIndex && RingPosition(word: position).slot < size
    default: false
    }
  }

  public var description: String {
    switch flags {
    case Self.enable: "ENABLE"
    case Self.disable: "DISABLE"
    case Self.descriptor: "DESC at \(RingPosition(word: position))"
    default: "flags 0x\(String(flags, radix: 16))"
    }
  }
}
