/// The chains of a packed ring, looked at from outside: what was available from one position on, and how much of it is used.

/// A look at numbers that others write, not a ring.
public struct PackedLook {
  /// The slots in which chains began, with the wrap counters of their rounds, in order.
  public let heads: [PackedPosition]
  private let configuration: QueueConfiguration

  /// - Parameter position: where the device takes the next chain.
  /// - Returns: `nil` where the ring is misaligned or outside guest memory, so that the queue cannot be one.
  public init?(_ configuration: QueueConfiguration, in memory: GuestMemory, from position: PackedPosition) {
    let size = Int(configuration.size)
    guard size > 0, size <= 32768, position.slot < size, Self.flags(configuration, in: memory, slot: 0) != nil else {
      return nil
    }
    var heads: [PackedPosition] = []
    var (next, left) = (position, size)
    chains: while left > 0 {
      let first = next
      repeat {
        guard left > 0, let flags = Self.flags(configuration, in: memory, slot: next.slot) else { break chains }
        // Of a list the first descriptor says whether all of it is available.
        guard next != first || flags & PackedFlags.both == PackedFlags.whenAvailable(first.wrap) else { break chains }
        left -= 1
        next = next.advanced(by: 1, size: size)
        if flags & 1 == 0 { break }
      } while true
      heads.append(first)
    }
    self.heads = heads
    self.configuration = configuration
  }

  /// How many of the chains are used, of a device that uses them in their order: each has its used descriptor in its own slot.
  public func usedCount(in memory: GuestMemory) -> Int {
    heads.prefix {
      guard let flags = Self.flags(configuration, in: memory, slot: $0.slot) else { return false }
      return flags & PackedFlags.both == PackedFlags.whenUsed($0.wrap)
    }.count
  }

  private static func flags(_ configuration: QueueConfiguration, in memory: GuestMemory, slot: Int) -> UInt16? {
    var view = memory.view()
    guard let at = configuration.descriptorTable.advanced(by: UInt64(16 * slot + 14)), at.isAligned(to: 2),
      let piece = view.contiguous(at, count: 2), unsafe UInt(bitPattern: piece.base) % 2 == 0
    else { return nil }
    return unsafe SharedCell<UInt16>(piece.base).loadAcquire()
  }
}
