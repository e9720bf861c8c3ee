/// The two indices of a split ring, read from outside the device.

/// `avail.idx` and `used.idx` of one queue in guest memory. A snapshot of numbers that driver and device write, not a ring.
public struct RingIndices {
  /// `avail.idx`: how many chains the driver has made available, modulo 2^16.
  public let available: UInt16
  /// `used.idx`: how many the device has published as used, modulo 2^16.
  public let used: UInt16

  /// - Returns: `nil` if an index is misaligned or outside guest memory, so that this cannot be a queue.
  public init?(_ configuration: QueueConfiguration, in memory: GuestMemory) {
    guard
      let available = Self.index(of: configuration.availableRing, in: memory),
      let used = Self.index(of: configuration.usedRing, in: memory)
    else { return nil }
    self.available = available
    self.used = used
  }

  /// Both rings begin with flags and an index of 16 bits each (virtio 2.6.6, 2.6.8).
  private static func index(of ring: GuestAddress, in memory: GuestMemory) -> UInt16? {
    var view = memory.view()
    guard let at = ring.advanced(by: 2), at.isAligned(to: 2) else { return nil }
    guard let piece = view.contiguous(at, count: 2) else { return nil }
    // Regions begin at page boundaries on both sides, so a guest address and its host address are aligned alike.
    return unsafe SharedCell<UInt16>(piece.base).loadAcquire()
  }
}
