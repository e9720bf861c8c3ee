/// One descriptor chain that was taken from a ring and has to be returned exactly once.

/// The token for a chain in flight: made by `pop`, consumed by `push`, so that a head cannot be answered twice or forgotten.
@frozen
public struct Chain: ~Copyable {
  /// A fault of the buffers that does not break the ring: the request fails, and its status can say so.
  public enum Defect: UInt8, Sendable {
    /// Some byte of the chain is outside guest memory.
    case unmapped
    /// The chain has more segments than there is room for.
    case tooManySegments
  }

  /// The value that identifies it in a used element: in a split ring the index of its first descriptor, in a packed one its
  /// buffer id.
  public let head: UInt16

  @inlinable @inline(__always)
  init(head: UInt16) { self.head = head }

  /// Drops a chain whose queue is broken: it will never be returned to the driver.
  public consuming func abandon() { discard self }

  /// Consumes the token when the used element is written.
  @inlinable @inline(__always) consuming func complete() -> UInt16 {
    let head = head
    discard self
    return head
  }

  deinit { assertionFailure("a chain was dropped without being pushed or abandoned") }
}

/// The buffers of a chain: where its segments are, and their total sizes. It is plain data beside the token, so that taking a
/// chain copies nothing.
///
/// The last byte of the last writable segment is the last writable byte of the chain, even if the chain has a defect: then this
/// byte is its only segment.
@safe
@frozen
public struct ChainShape {
  /// The first of the segments that the device may write; those that it may read are before it.
  public var writable: UnsafeMutablePointer<MemorySegment>
  /// Where the segments end. There is nothing to write if `writable` is here.
  public var end: UnsafeMutablePointer<MemorySegment>
  /// Bytes of all readable descriptors; with `writableBytes` at most 2^32. 0 for a chain with a defect: a request that cannot
  /// be read completely is not read at all.
  public var readableBytes: UInt64 = 0
  /// Bytes of all writable descriptors, the status byte included.
  public var writableBytes: UInt64 = 0
  /// Why the request has to be refused; `nil`: nothing is wrong with its buffers.
  public var defect: Chain.Defect?

  /// An empty chain. - Parameter segments: where a chain's segments will be.
  public init(at segments: UnsafeMutablePointer<MemorySegment>) {
    unsafe writable = segments
    unsafe end = segments
  }

  /// The last writable byte of the chain; only with `writable` before `end`.
  @inlinable @inline(__always)
  public var statusByte: UnsafeMutableRawPointer {
    let last = unsafe end - 1
    return unsafe last.pointee.base + (last.pointee.count &- 1)
  }

  /// How many segments the device may read. - Parameter segments: where the chain's segments begin.
  @inlinable @inline(__always)
  public func readableCount(from segments: UnsafeMutablePointer<MemorySegment>) -> Int {
    unsafe Self.count(from: segments, to: writable)
  }

  /// How many segments the device may write.
  @inlinable @inline(__always)
  public var writableCount: Int { unsafe Self.count(from: writable, to: end) }

  /// Subtracting the pointers would be a signed division.
  @inlinable @inline(__always)
  static func count(
    from first: UnsafeMutablePointer<MemorySegment>, to end: UnsafeMutablePointer<MemorySegment>
  ) -> Int {
    Int((UInt(bitPattern: end) &- UInt(bitPattern: first)) / UInt(MemoryLayout<MemorySegment>.stride))
  }
}
