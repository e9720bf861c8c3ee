/// One entry of a split descriptor table, as a private copy (virtio 2.6.5).

@usableFromInline
struct Descriptor {
  @inlinable static var nextFlag: UInt32 { 1 }
  @inlinable static var writeFlag: UInt32 { 2 }
  @inlinable static var indirectFlag: UInt32 { 4 }

  @usableFromInline let address: UInt64
  @usableFromInline let length: UInt32
  /// Flags and `next`, as they lie in memory.
  @usableFromInline let link: UInt32

  @inlinable @inline(__always) var next: UInt32 { link >> 16 }
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

  /// Reads each half exactly once. - Parameter pointer: 16 bytes, aligned to 8.
  @inlinable @inline(__always)
  init(readingOnce pointer: UnsafeMutableRawPointer) {
    self.init(
      unsafe SharedCell<UInt64>(pointer).loadRelaxed(), unsafe SharedCell<UInt64>(pointer + 8).loadRelaxed())
  }
}
