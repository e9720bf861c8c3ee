/// One descriptor chain that was taken from a ring and has to be answered exactly once.

/// The token for a chain in flight: made by `pop`, consumed by `push`, so that a head cannot be answered twice or forgotten.
@safe
public struct Chain: ~Copyable {
  /// Something wrong with the buffers that does not break the ring: the request fails, and can be told so.
  public enum Defect: UInt8, Sendable {
    /// Some byte of the chain is in no memory region.
    case unmapped
    /// The chain has more pieces than there is room for.
    case tooManySegments
  }

  /// The descriptor that the chain begins with: its name in the used ring.
  public let head: UInt16
  /// How many of the segments the device may read; they come first.
  public let readableCount: UInt16
  /// How many of the segments the device may write.
  public let writableCount: UInt16
  public let defect: Defect?
  /// Bytes of all readable descriptors; with `writableBytes` at most 2^32.
  public let readableBytes: UInt64
  public let writableBytes: UInt64
  /// Where the last writable byte is; `nil` if there is none.
  public let lastWritable: UnsafeMutableRawPointer?

  @inline(__always)
  init(
    head: UInt16, readableCount: Int, writableCount: Int, readableBytes: UInt64, writableBytes: UInt64,
    lastWritable: UnsafeMutableRawPointer?, defect: Defect?
  ) {
    self.head = head
    self.readableCount = UInt16(truncatingIfNeeded: readableCount)
    self.writableCount = UInt16(truncatingIfNeeded: writableCount)
    self.readableBytes = readableBytes
    self.writableBytes = writableBytes
    unsafe self.lastWritable = lastWritable
    self.defect = defect
  }

  /// Lets go of a chain whose queue is broken: nobody will be told about it any more.
  public consuming func abandon() { discard self }

  /// Ends the token where the used element is written.
  @inline(__always) consuming func complete() -> UInt16 {
    let head = head
    discard self
    return head
  }

  deinit { assertionFailure("a chain was dropped without being pushed or abandoned") }
}
