/// One entry of a packed descriptor ring, as a private copy (virtio 2.7.13), and the two bits that say whose it is.

@usableFromInline
struct PackedDescriptor {
  @inlinable static var nextFlag: UInt32 { 1 << 16 }
  @inlinable static var writeFlag: UInt32 { 2 << 16 }
  @inlinable static var indirectFlag: UInt32 { 4 << 16 }

  @usableFromInline let address: UInt64
  @usableFromInline let length: UInt32
  /// Buffer id and flags, as they lie in memory.
  @usableFromInline let link: UInt32

  @inlinable @inline(__always) var id: UInt16 { UInt16(truncatingIfNeeded: link) }
  @inlinable @inline(__always) var flags: UInt16 { UInt16(truncatingIfNeeded: link >> 16) }
  @inlinable @inline(__always) var hasNext: Bool { link & Self.nextFlag != 0 }
  @inlinable @inline(__always) var hasWrite: Bool { link & Self.writeFlag != 0 }
  @inlinable @inline(__always) var isIndirect: Bool { link & Self.indirectFlag != 0 }
  /// A buffer that the device reads.
  @inlinable @inline(__always) var isReadable: Bool { link & (Self.writeFlag | Self.indirectFlag) == 0 }
  /// A buffer that the device writes.
  @inlinable @inline(__always) var isWritable: Bool { link & (Self.writeFlag | Self.indirectFlag) == Self.writeFlag }

  @inlinable @inline(__always)
  init(_ low: UInt64, _ high: UInt64) {
    address = UInt64(littleEndian: low)
    let rest = UInt64(littleEndian: high)
    length = UInt32(truncatingIfNeeded: rest)
    link = UInt32(truncatingIfNeeded: rest >> 32)
  }

  /// Reads the other half once. - Parameters:
  ///   - high: the half with length, id and flags, as it was read.
  ///   - pointer: 16 bytes, aligned to 8.
  @inlinable @inline(__always)
  init(high: UInt64, at pointer: UnsafeMutableRawPointer) {
    self.init(unsafe SharedCell<UInt64>(pointer).loadRelaxed(), high)
  }

  /// Reads each half exactly once. - Parameter pointer: 16 bytes, aligned to 8.
  @inlinable @inline(__always)
  init(readingOnce pointer: UnsafeMutableRawPointer) {
    self.init(
      unsafe SharedCell<UInt64>(pointer).loadRelaxed(), unsafe SharedCell<UInt64>(pointer + 8).loadRelaxed())
  }
}

/// The AVAIL and USED bits of a descriptor's flags (virtio 2.7.1): each side compares them with its own wrap counter.
@usableFromInline
enum PackedFlags {
  @inlinable static var available: UInt16 { 1 << 7 }
  @inlinable static var used: UInt16 { 1 << 15 }
  @inlinable static var write: UInt16 { 2 }
  /// The bits that change when a wrap counter does.
  @inlinable static var both: UInt16 { available | used }
  /// The same bits in a descriptor's last word, and a value that never matches them.
  @inlinable static var bothMarks: UInt32 { UInt32(both) << 16 }
  @inlinable static var noMark: UInt32 { 1 }

  /// The bits of a descriptor that is available in a round with this wrap counter: AVAIL equals the counter, USED does not.
  @inlinable @inline(__always)
  static func whenAvailable(_ wrap: Bool) -> UInt16 { wrap ? available : used }
  /// The bits of a descriptor that is used: both equal the counter.
  @inlinable @inline(__always)
  static func whenUsed(_ wrap: Bool) -> UInt16 { wrap ? both : 0 }
}
