/// A contiguous piece of host memory: what a guest address range becomes once it was translated.

/// A host address and a byte count, laid out as the kernel's `struct iovec`, so that an array of these goes to vectored I/O
/// as it is. It owns nothing: the `GuestMemory` it came from keeps it mapped.
@safe
@frozen
public struct MemorySegment: @unchecked Sendable {
  /// The first byte.
  public var base: UnsafeMutableRawPointer
  /// Bytes.
  public var count: Int

  /// - Parameters:
  ///     - base: the first byte, mapped for as long as the segment is used.
  ///     - count: bytes.
  @inlinable public init(base: UnsafeMutableRawPointer, count: Int) {
    unsafe self.base = base
    self.count = count
  }
}

extension MemorySegment {
  /// The two ends of a list of segments, trimmed as bytes are taken off the front or back.
  @inlinable public mutating func removeFirst(_ bytes: Int) {
    unsafe base += bytes
    count -= bytes
  }
}

extension MemorySegment {
  /// What comes after the last segment of a chain whose driver is behind an IOMMU, so that it can be looked up later what a
  /// request in flight uses.
  static var end: MemorySegment {
    unsafe MemorySegment(base: UnsafeMutableRawPointer(bitPattern: 1).unsafelyUnwrapped, count: -1)
  }
  /// It is that.
  package var isEnd: Bool { count < 0 }
}
