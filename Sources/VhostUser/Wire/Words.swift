/// Numbers in and out of message bytes. The protocol is in the host's byte order, and every host that this runs on is
/// little-endian.

extension Array where Element == UInt8 {
  mutating func append32(_ value: UInt32) {
    for shift in stride(from: UInt32(0), to: 32, by: 8) { append(UInt8(truncatingIfNeeded: value >> shift)) }
  }

  mutating func append64(_ value: UInt64) {
    for shift in stride(from: UInt64(0), to: 64, by: 8) { append(UInt8(truncatingIfNeeded: value >> shift)) }
  }

  /// The word at `offset`. The caller has checked the length of the message.
  func word32(at offset: Int) -> UInt32 {
    var value: UInt32 = 0
    for index in 0..<4 { value |= UInt32(self[offset + index]) << UInt32(8 * index) }
    return value
  }

  /// The double word at `offset`. The caller has checked the length of the message.
  func word64(at offset: Int) -> UInt64 {
    UInt64(word32(at: offset)) | UInt64(word32(at: offset + 4)) << 32
  }
}
