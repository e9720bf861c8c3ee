/// Guest memory as a front-end describes it: regions with three addresses each, and their mappings.
public import SystemPackage
public import VirtioCore

/// Why a description of memory was refused.
public enum MemoryTableError: Error, Hashable, CustomStringConvertible {
  case tooManyRegions(Int, limit: Int)
  case empty(MemoryRegion)
  case guestRangeOverflows(MemoryRegion)
  case userRangeOverflows(MemoryRegion)
  case fileRangeOverflows(MemoryRegion)
  case guestRangesOverlap(MemoryRegion, MemoryRegion)
  case userRangesOverlap(MemoryRegion, MemoryRegion)
  /// - budget: bytes.
  case overBudget(Int, budget: UInt64)
  case noSuchRegion(MemoryRegion)
  case fileTooSmall(MemoryRegion, fileSize: Int64)
  case notMappable(MemoryRegion, Errno)

  public var description: String {
    switch self {
    case .tooManyRegions(let count, let limit): "\(count) memory regions are more than the \(limit) slots"
    case .empty(let region): "the memory region at \(region.guestAddress) is empty"
    case .guestRangeOverflows(let region): "the memory region at \(region.guestAddress) leaves the guest's 64-bit address space"
    case .userRangeOverflows(let region): "the memory region at \(region.guestAddress) leaves the front-end's address space"
    case .fileRangeOverflows(let region):
      "the memory region at \(region.guestAddress) goes past the end of any file (offset \(region.offset))"
    case .guestRangesOverlap(let one, let other):
      "the memory regions at \(one.guestAddress) and \(other.guestAddress) overlap"
    case .userRangesOverlap(let one, let other):
      "the memory regions at \(one.guestAddress) and \(other.guestAddress) overlap in the front-end's addresses"
    case .overBudget(let count, let budget):
      "the \(count) memory regions have more than the \(budget) bytes that a disk may map; raise --memory-budget"
    case .noSuchRegion(let region): "there is no memory region at \(region.guestAddress) of \(region.size) bytes to remove"
    case .fileTooSmall(let region, let size):
      """
      the memory region at \(region.guestAddress) needs \(region.size) bytes from offset \(region.offset), and its file \
      has \(size)
      """
    case .notMappable(let region, let error): "the memory region at \(region.guestAddress) cannot be mapped: \(error)"
    }
  }
}

/// The current table. Immutable: a change makes a new one.
public struct MemoryTable: Sendable {
  /// One region with its mapping.
  public struct Entry: Sendable {
    public let region: MemoryRegion
    let mapping: Mapping
    /// The offset of the region in the mapping, bytes.
    let offset: Int
    let file: FileIdentity
    /// The file, for a process that continues with it.
    let descriptor: OwnedDescriptor
  }

  /// Identifies the file of a descriptor: two descriptors of one memfd are the same memory.
  struct FileIdentity: Hashable, Sendable {
    var device: UInt64
    var inode: UInt64
  }

  /// In the order in which they were sent.
  let entries: [Entry]
  public let memory: GuestMemory

  /// No memory: before the first table.
  init() {
    self.entries = []
    do { self.memory = try GuestMemory([]) } catch { preconditionFailure("an empty memory is always valid: \(error)") }
  }

  init(_ entries: [Entry], memory: GuestMemory) {
    self.entries = entries
    self.memory = memory
  }

  /// The regions, as the front-end described them.
  public var regions: [MemoryRegion] { entries.map(\.region) }

  /// Both tables have the same mappings.
  func hasSameMappings(as other: MemoryTable) -> Bool {
    entries.count == other.entries.count && zip(entries, other.entries).allSatisfy { $0.mapping === $1.mapping }
  }

  /// Translates an address of the front-end's process into a guest address; `nil` if no region contains it. Whether the
  /// bytes that follow are in memory as well is for the ring to check, which knows their number.
  public func guestAddress(ofUser address: UInt64) -> GuestAddress? {
    for entry in entries {
      let distance = address &- entry.region.userAddress
      if distance < entry.region.size { return entry.region.guestAddress.advanced(by: distance) }
    }
    return nil
  }
}
