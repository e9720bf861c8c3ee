/// The chains of a packed ring, read from outside the device: those available from one position on, and how many of them are
/// used.

/// The chains of a packed ring, read from outside the device.
///
/// A snapshot of numbers that driver and device write, not a ring.
public struct PackedLook {
  /// The slots in which chains start, with the wrap counters of their rounds, in order.
  public let heads: [PackedPosition]
  /// Their buffer ids.
  private let ids: [UInt16]
  private let configuration: QueueConfiguration

  /// - Parameter position: where the device takes the next chain.
  /// - Returns: `nil` if the ring is misaligned or outside guest memory, so that this cannot be a queue.
  public init?(_ configuration: QueueConfiguration, in memory: GuestMemory, from position: PackedPosition) {
    let size = Int(configuration.size)
    guard size > 0, size <= 32768, position.slot < size, Self.flags(configuration, in: memory, slot: 0) != nil else {
      return nil
    }
    var heads: [PackedPosition] = []
    var ids: [UInt16] = []
    var (next, left) = (position, size)
    chains: while left > 0 {
      let first = next
      repeat {
        guard left > 0, let flags = Self.flags(configuration, in: memory, slot: next.slot) else { break chains }
        // The first descriptor of a list says whether all of it is available.
        guard next != first || flags & PackedFlags.both == PackedFlags.whenAvailable(first.wrap) else { break chains }
        left -= 1
        next = next.advanced(by: 1, size: size)
        guard flags & 1 == 0 else { continue }
        // The buffer id of a list is in its last descriptor (virtio 2.7.13).
        let last = (next.slot + size - 1) % size
        guard let id = Self.word(configuration, in: memory, slot: last, offset: 12) else { break chains }
        ids.append(id)
        break
      } while true
      heads.append(first)
    }
    self.heads = heads
    self.ids = ids
    self.configuration = configuration
  }

  /// How many of the chains are used by a device that uses them in order: each has its used descriptor in its own slot, or an
  /// earlier chain's slot has a used descriptor with the id of a later one (IN_ORDER, virtio 2.7.8).
  public func usedCount(in memory: GuestMemory) -> Int {
    var count = 0
    while count < heads.count {
      let head = heads[count]
      guard let flags = Self.flags(configuration, in: memory, slot: head.slot),
        flags & PackedFlags.both == PackedFlags.whenUsed(head.wrap),
        let id = Self.word(configuration, in: memory, slot: head.slot, offset: 12)
      else { break }
      count = (ids[count...].firstIndex(of: id) ?? count) + 1
    }
    return count
  }

  private static func flags(_ configuration: QueueConfiguration, in memory: GuestMemory, slot: Int) -> UInt16? {
    word(configuration, in: memory, slot: slot, offset: 14)
  }

  private static func word(
    _ configuration: QueueConfiguration, in memory: GuestMemory, slot: Int, offset: Int
  ) -> UInt16? {
    var view = memory.view()
    guard let at = configuration.descriptorTable.advanced(by: UInt64(16 * slot + offset)), at.isAligned(to: 2),
      let piece = view.contiguous(at, count: 2), unsafe UInt(bitPattern: piece.base) % 2 == 0
    else { return nil }
    return unsafe SharedCell<UInt16>(piece.base).loadAcquire()
  }
}
