/// The position of one side of a packed ring: a slot, and the wrap counter of its round (virtio 2.7.1).

/// The position of one side of a packed ring: a slot, and the wrap counter of its round.
///
/// The raw value has the form in which positions are saved, and which an event suppression structure uses: the slot in bits 0 …
/// 14, the wrap counter in bit 15.
public struct PackedPosition: RawRepresentable, Hashable, Sendable {
  /// Bits 0 … 14: the slot; bit 15: the wrap counter.
  public var rawValue: UInt16

  /// Not checked: the ring checks whether the slot is within its size.
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// - Parameter slot: 0 … 32767.
  @inlinable public init(slot: Int, wrap: Bool) {
    rawValue = UInt16(truncatingIfNeeded: slot) & 0x7fff | (wrap ? 0x8000 : 0)
  }

  /// The position in a new ring: both wrap counters start as 1.
  public static let start = PackedPosition(rawValue: 0x8000)

  /// 0 … 32767.
  @inlinable public var slot: Int { Int(rawValue & 0x7fff) }
  /// The wrap counter: `true` in the first round of a new ring, then alternating.
  @inlinable public var wrap: Bool { rawValue & 0x8000 != 0 }

  /// The position `span` slots further on. - Parameters:
  ///   - span: 0 … `size`.
  ///   - size: of the ring; more than `slot`.
  @inlinable public func advanced(by span: Int, size: Int) -> PackedPosition {
    let next = slot &+ span
    return next < size ? PackedPosition(slot: next, wrap: wrap) : PackedPosition(slot: next &- size, wrap: !wrap)
  }

  /// How many slots this is ahead of another one: 0 … `size`.
  /// - Returns: `nil` if it is not ahead within one round.
  public func distance(from other: PackedPosition, size: Int) -> Int? {
    let distance = wrap == other.wrap ? slot - other.slot : slot + size - other.slot
    return (0...size).contains(distance) ? distance : nil
  }
}

extension QueuePosition {
  /// The position of a packed queue: both fields are raw values of a `PackedPosition`.
  public init(available: PackedPosition, used: PackedPosition) {
    self.init(available: available.rawValue, used: used.rawValue)
  }

  /// The position of a new queue. - Parameter features: the negotiated features.
  public static func start(_ features: FeatureSet) -> QueuePosition {
    features.contains(.packedRing) ? QueuePosition(available: .start, used: .start) : QueuePosition()
  }
}
