/// Translations of the addresses of a driver behind an IOMMU (ACCESS_PLATFORM, virtio 6.1): where they lie in this process, and
/// what the device may do there.

/// The access that a translation allows, or that a look-up needs; the values are those of vhost.
public struct MemoryAccess: OptionSet, Hashable, Sendable {
  /// Bit 0: read, bit 1: write.
  public var rawValue: UInt8
  /// Bits without a name are kept.
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The device reads.
  public static let read = MemoryAccess(rawValue: 1)
  /// The device writes.
  public static let write = MemoryAccess(rawValue: 2)
}

/// An access that no translation covers yet, or none allows.
public struct TranslationMiss: Hashable, Sendable {
  /// The driver's address, as the IOMMU sees it (an I/O virtual address).
  public var address: UInt64
  /// The access that was attempted.
  public var access: MemoryAccess

  /// The parameters are the properties of the same names.
  public init(address: UInt64, access: MemoryAccess) {
    self.address = address
    self.access = access
  }
}

/// The translations that are in force at one moment. Immutable: a change is a new object, which a queue gets between two of its
/// turns. It keeps nothing mapped: its owner also holds the guest's memory.
@safe
public final class Translations: @unchecked Sendable {
  /// A range of the driver's addresses that lies in one piece in this process.
  @safe
  public struct Entry: @unchecked Sendable {
    /// The driver's address of its first byte.
    public var start: UInt64
    /// Bytes; at least 1, and the range does not go past the end of the address space.
    public var size: UInt64
    /// Where that byte is in this process.
    public var host: UnsafeMutableRawPointer
    /// What the device may do there.
    public var access: MemoryAccess

    /// The parameters are the properties of the same names.
    public init(start: UInt64, size: UInt64, host: UnsafeMutableRawPointer, access: MemoryAccess) {
      self.start = start
      self.size = size
      unsafe self.host = host
      self.access = access
    }
  }

  /// A range of addresses in this process.
  package struct HostRange {
    package var base: UInt
    package var count: UInt

    package init(base: UInt, count: UInt) {
      self.base = base
      self.count = count
    }

    /// Computed without a sum that could overflow.
    package func overlaps(_ other: HostRange) -> Bool {
      other.base &- base < count || base &- other.base < other.count
    }
  }

  let entries: [Entry]
  /// Tells which of two is newer: the higher number.
  public let number: UInt64
  /// How often translations were dropped that the front-end had not invalidated. A translation handed out before the last time
  /// may still be in use and not be listed here.
  public let losses: UInt64

  /// - Parameter entries: sorted by their starts, none of which overlap.
  public init(_ entries: [Entry], number: UInt64, losses: UInt64) {
    self.entries = entries
    self.number = number
    self.losses = losses
  }

  /// How many ranges are known.
  public var count: Int { entries.count }

  /// Where an address is, and the access allowed from there to the end of its entry; `nil` if it has no translation.
  public func find(_ address: UInt64) -> (piece: MemorySegment, access: MemoryAccess)? {
    let index = firstIndex(endingAtOrAfter: address)
    guard index < entries.count, address >= entries[index].start else { return nil }
    let entry = entries[index]
    let distance = address - entry.start
    return unsafe (
      MemorySegment(base: entry.host + Int(distance), count: Int(clamping: entry.size - distance)), entry.access
    )
  }

  /// Whether the access can be made.
  public func allows(_ miss: TranslationMiss) -> Bool { find(miss.address)?.access.isSuperset(of: miss.access) ?? false }

  /// The first byte of a range for which the access cannot be made; `nil`: all of it can.
  public func firstMiss(_ address: UInt64, count: UInt64, for access: MemoryAccess) -> TranslationMiss? {
    var (next, left) = (address, count)
    while left > 0 {
      guard let (piece, allowed) = find(next), allowed.isSuperset(of: access) else {
        return TranslationMiss(address: next, access: access)
      }
      let step = min(left, UInt64(piece.count))
      left -= step
      // Nothing past the end of the address space is ever translated; the ring reports the fault itself.
      let (sum, overflow) = next.addingReportingOverflow(step)
      guard !overflow || left == 0 else { return TranslationMiss(address: next, access: access) }
      next = sum
    }
    return nil
  }

  /// Where a range is, if all of it can be accessed and it lies in one piece here, even if it spans several entries.
  public func contiguous(_ address: UInt64, count: UInt64, for access: MemoryAccess) -> MemorySegment? {
    guard let first = find(address)?.piece, firstMiss(address, count: count, for: access) == nil else { return nil }
    var done: UInt64 = 0
    while done < count {
      guard let piece = find(address + done)?.piece, unsafe piece.base == first.base + Int(done) else { return nil }
      done += UInt64(piece.count)
    }
    return unsafe MemorySegment(base: first.base, count: Int(clamping: count))
  }

  /// Where these addresses lie. - Returns: `nil` if that is more than `limit` ranges.
  package func hostRanges(first: UInt64, last: UInt64, atMost limit: Int) -> [HostRange]? {
    var ranges: [HostRange] = []
    for entry in entries[firstIndex(endingAtOrAfter: first)...] {
      guard entry.start <= last else { break }
      guard ranges.count < limit else { return nil }
      // Clipped to the range that was asked for.
      let start = max(entry.start, first)
      let end = min(entry.start + (entry.size - 1), last)
      unsafe ranges.append(
        HostRange(base: UInt(bitPattern: entry.host) + UInt(start - entry.start), count: UInt(end - start) + 1))
    }
    return ranges
  }

  /// The index of the entry that contains an address, if any does; the entries do not overlap.
  private func firstIndex(endingAtOrAfter address: UInt64) -> Int {
    var (low, high) = (0, entries.count)
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].start + (entries[middle].size - 1) < address { low = middle + 1 } else { high = middle }
    }
    return low
  }
}

/// Translations that a front-end invalidates.
public struct Withdrawal: Sendable {
  /// The first address.
  public var first: UInt64
  /// The last address; inclusive, so that a range can reach the end of the address space.
  public var last: UInt64
  /// What stays in force.
  public var remaining: Translations

  /// The parameters are the properties of the same names.
  public init(first: UInt64, last: UInt64, remaining: Translations) {
    self.first = first
    self.last = last
    self.remaining = remaining
  }
}
