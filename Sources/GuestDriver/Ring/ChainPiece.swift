/// The parts of a chain: its pieces, where its descriptors go, and what comes back.
public import VirtioCore

/// One piece of a chain: guest memory that the device is to read, or to write.
public struct ChainPiece: Hashable, Sendable {
  public var address: GuestAddress
  public var length: UInt32
  public var deviceWrites: Bool

  public init(_ address: GuestAddress, length: UInt32, deviceWrites: Bool) {
    self.address = address
    self.length = length
    self.deviceWrites = deviceWrites
  }
}

/// Where the descriptors of a chain go.
public enum ChainPlacement: Hashable, Sendable {
  /// All in the ring's own table.
  case direct
  /// The first `direct` pieces in the ring's table, the rest in an indirect table after them (virtio 2.6.5.3). `write` sets the
  /// WRITE flag on the descriptor that refers to the table, which the device has to ignore. In a packed ring a descriptor that
  /// refers to a table stands alone (virtio 2.7.19), so there all pieces go into it.
  case indirect(direct: Int = 0, write: Bool = false)
}

/// A chain that came back.
public struct UsedChain: Hashable, Sendable {
  /// Its name in the ring: the head of a split ring's chain, the buffer ID of a packed one's.
  public let head: UInt16
  /// What the caller gave to `add`.
  public let token: UInt32
  /// Bytes written, as the device reports; at most `writable`.
  public let length: UInt32
  public let writable: UInt64
}
