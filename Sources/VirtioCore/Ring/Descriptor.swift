/// One entry of a split descriptor table, as a private copy (virtio 2.6.5).

struct Descriptor {
  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4

  let address: UInt64
  let length: UInt32
  let flags: UInt16
  let next: UInt16

  @inline(__always)
  init(_ low: UInt64, _ high: UInt64) {
    address = UInt64(littleEndian: low)
    let rest = UInt64(littleEndian: high)
    length = UInt32(truncatingIfNeeded: rest)
    flags = UInt16(truncatingIfNeeded: rest >> 32)
    next = UInt16(truncatingIfNeeded: rest >> 48)
  }

  /// Reads each half exactly once. - Parameter pointer: 16 bytes, aligned to 8.
  @inline(__always)
  init(readingOnce pointer: UnsafeMutableRawPointer) {
    self.init(
      unsafe SharedCell<UInt64>(pointer).loadRelaxed(), unsafe SharedCell<UInt64>(pointer + 8).loadRelaxed())
  }
}
