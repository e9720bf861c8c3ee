/// An address in the guest's own physical memory: a number from the guest, never something to dereference.

/// A guest-physical address. Arithmetic on it is checked: a result beyond 64 bits is `nil`, it does not wrap.
public struct GuestAddress: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
  /// Bytes from guest-physical address 0.
  public var rawValue: UInt64

  /// Any 64-bit value is an address; whether there is memory is for `GuestMemory` to say.
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  /// The same, without a label.
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  /// The address `bytes` further on, or `nil` past the end of the 64-bit space.
  @inlinable public func advanced(by bytes: UInt64) -> GuestAddress? {
    let (sum, overflow) = rawValue.addingReportingOverflow(bytes)
    return overflow ? nil : GuestAddress(sum)
  }

  /// Whether it is a multiple of `alignment`, which must not be 0.
  @inlinable public func isAligned(to alignment: UInt64) -> Bool { rawValue % alignment == 0 }

  /// By value, without a sign.
  @inlinable public static func < (left: GuestAddress, right: GuestAddress) -> Bool { left.rawValue < right.rawValue }

  /// In hexadecimal, with 0x in front.
  public var description: String { "0x" + String(rawValue, radix: 16) }
}
