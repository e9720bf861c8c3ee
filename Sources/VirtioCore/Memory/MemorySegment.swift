/// A contiguous piece of host memory: what a guest address range becomes when it is translated.

/// A host address and a byte count, laid out as the kernel's `struct iovec`, so that an array of them can be passed to vectored
/// I/O unchanged. It owns nothing: the `GuestMemory` it came from keeps it mapped.
@safe
@frozen
public struct MemorySegment: @unchecked Sendable {
  /// The first byte.
  public var base: UnsafeMutableRawPointer
  /// Bytes.
  public var count: Int

  /// - Parameters:
  ///   - base: the first byte, mapped for as long as the segment is used.
  ///   - count: bytes.
  @inlinable public init(base: UnsafeMutableRawPointer, count: Int) {
    unsafe self.base = base
    self.count = count
  }
}

extension MemorySegment {
  /// Drops bytes from the front. - Parameter bytes: at most `count`.
  @inlinable public mutating func removeFirst(_ bytes: Int) {
    unsafe base += bytes
    count -= bytes
  }
}

extension MemorySegment {
  /// The marker after the last segment of a chain whose driver is behind an IOMMU, from which it can be told later which memory
  /// a request in flight uses.
  static var end: MemorySegment {
    unsafe MemorySegment(base: UnsafeMutableRawPointer(bitPattern: 1).unsafelyUnwrapped, count: -1)
  }
  /// Whether this is the `end` marker.
  package var isEnd: Bool { count < 0 }
}
