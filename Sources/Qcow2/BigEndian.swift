/// The big-endian numbers of an image.

extension [UInt8] {
  /// - Parameter offset: of four bytes that exist.
  func word32(_ offset: Int) -> UInt32 {
    UInt32(self[offset]) << 24 | UInt32(self[offset + 1]) << 16 | UInt32(self[offset + 2]) << 8 | UInt32(self[offset + 3])
  }

  func word16(_ offset: Int) -> UInt16 { UInt16(self[offset]) << 8 | UInt16(self[offset + 1]) }

  /// - Parameter offset: of eight bytes that exist.
  func word64(_ offset: Int) -> UInt64 { UInt64(word32(offset)) << 32 | UInt64(word32(offset + 4)) }

  mutating func put16(_ value: UInt16, at offset: Int) {
    self[offset] = UInt8(truncatingIfNeeded: value >> 8)
    self[offset + 1] = UInt8(truncatingIfNeeded: value)
  }

  mutating func put32(_ value: UInt32, at offset: Int) {
    put16(UInt16(truncatingIfNeeded: value >> 16), at: offset)
    put16(UInt16(truncatingIfNeeded: value), at: offset + 2)
  }

  mutating func put64(_ value: UInt64, at offset: Int) {
    put32(UInt32(truncatingIfNeeded: value >> 32), at: offset)
    put32(UInt32(truncatingIfNeeded: value), at: offset + 4)
  }
}

extension UInt64 {
  /// Rounds up to a multiple of a power of two; `nil` on overflow.
  func rounded(up unit: UInt64) -> UInt64? {
    let (sum, isTooLarge) = addingReportingOverflow(unit - 1)
    return isTooLarge ? nil : sum & ~(unit - 1)
  }
}
