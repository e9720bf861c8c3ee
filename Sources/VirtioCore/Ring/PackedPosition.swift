/// Where one side of a packed ring stands: a slot, and the wrap counter of its round (virtio 2.7.1).

/// Where one side of a packed ring stands: a slot, and the wrap counter of its round.
///
/// The raw value is the one that is saved, and the one in an event suppression structure: the slot in bits 0 … 14, the wrap
/// counter in bit 15.
public struct PackedPosition: RawRepresentable, Hashable, Sendable {
  /// Bits 0 … 14: the slot; bit 15: the wrap counter.
  public var rawValue: UInt16

  /// Whether the slot is one of a ring is for the ring to check.
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// - Parameter slot: 0 … 32767.
  @inlinable public init(slot: Int, wrap: Bool) {
    rawValue = UInt16(truncatingIfNeeded: slot) & 0x7fff | (wrap ? 0x8000 : 0)
  }

  /// The position in a new ring: both wrap counters start as 1.
  public static let start = PackedPosition(rawValue: 0x8000)

  /// 0 … 32767.
  @inlinable public var slot: Int { Int(rawValue & 0x7fff) }
  /// The wrap counter: `true` in the first round of a new ring, then the other one, and so on.
  @inlinable public var wrap: Bool { rawValue & 0x8000 != 0 }

  /// The position `span` slots further on. - Parameters:
  ///   - span: 0 … `size`.
  ///   - size: of the ring; more than `slot`.
  @inlinable public func advanced(by span: Int, size: Int) -> PackedPosition {
    let next = slot &+ span
    return next < size ? PackedPosition(slot: next, wrap: wrap) : PackedPosition(slot: next &- size, wrap: !wrap)
  }

  /// How many slots this is ahead of another one: 0 … `size`.
  /// - Returns: `nil` when it is not ahead of it within one round.
  public func distance(from other: PackedPosition, size: Int) -> Int? {
    let distance = wrap == other.wrap ? slot - other.slot : slot + size - other.slot
    return (0...size).contains(distance) ? distance : nil
  }
}

extension QueuePosition {
  /// Of a packed queue: both halves are raw values of a `PackedPosition`.
  public init(available: PackedPosition, used: PackedPosition) {
    self.init(available: available.rawValue, used: used.rawValue)
  }

  /// Where a new queue stands. - Parameter features: what was negotiated.
  public static func start(_ features: FeatureSet) -> QueuePosition {
    features.contains(.packedRing) ? QueuePosition(available: .start, used: .start) : QueuePosition()
  }
}
