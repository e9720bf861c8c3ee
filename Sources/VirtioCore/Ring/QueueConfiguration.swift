/// The parameters of a queue before it runs: numbers from the driver, not yet validated.

/// Size and guest addresses of one queue. They can have any value: only a ring's initializer decides whether this is a queue.
public struct QueueConfiguration: Hashable, Sendable {
  /// Entries, 1 … 32768; of a split queue a power of two.
  public var size: UInt16
  /// Descriptor table; of a packed queue the descriptor ring (Descriptor Area).
  public var descriptorTable: GuestAddress
  /// Available ring; of a packed queue the driver event suppression structure (Driver Area).
  public var availableRing: GuestAddress
  /// Used ring; of a packed queue the device event suppression structure (Device Area).
  public var usedRing: GuestAddress

  /// Nothing is checked here: the ring does that when it is made.
  public init(size: UInt16, descriptorTable: GuestAddress, availableRing: GuestAddress, usedRing: GuestAddress) {
    self.size = size
    self.descriptorTable = descriptorTable
    self.availableRing = availableRing
    self.usedRing = usedRing
  }

  /// The one contiguous layout of legacy devices (virtio 2.6.2): table, available ring, padding, used ring.
  ///
  /// - Parameters:
  ///   - base: where the table begins.
  ///   - alignment: of the used ring, bytes, a power of two: 4096 over PCI, QueueAlign over MMIO.
  /// - Returns: `nil` if a part leaves the address space or the alignment is not a power of two.
  public static func legacy(size: UInt16, base: GuestAddress, alignment: UInt64 = 4096) -> QueueConfiguration? {
    guard alignment > 0, alignment & (alignment - 1) == 0 else { return nil }
    let table = 16 * UInt64(size)
    let available = 6 + 2 * UInt64(size)
    let unaligned = table + available
    guard
      alignment <= 1 << 32,
      let availableRing = base.advanced(by: table),
      let usedRing = base.advanced(by: (unaligned + alignment - 1) & ~(alignment - 1))
    else { return nil }
    return QueueConfiguration(size: size, descriptorTable: base, availableRing: availableRing, usedRing: usedRing)
  }
}

/// The position of a queue between two runs: returned when it is stopped, and passed in when it is started again. Free-running
/// indices for a split queue, raw values of `PackedPosition` for a packed one.
public struct QueuePosition: Hashable, Sendable {
  /// The free-running index of the next available entry that the device will look at (`last_avail_idx`).
  public var available: UInt16
  /// The free-running index under which the next used entry will be published (`last_used_idx`); `nil`: a split queue takes it
  /// from the used ring in guest memory, and for a packed queue, which has no such word, nothing is in flight.
  public var used: UInt16?

  /// The parameters are the properties of the same names; the defaults are the position of a new split queue.
  public init(available: UInt16 = 0, used: UInt16? = 0) {
    self.available = available
    self.used = used
  }
}
