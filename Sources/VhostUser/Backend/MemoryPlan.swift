/// A change of guest memory: checked as numbers first, carried out against files afterwards.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// A table to be mapped. Making the plan does no I/O; `carryOut` maps, and queries files of another process, which may block
/// forever.
public struct MemoryPlan: Sendable {
  struct Addition: Sendable {
    var region: MemoryRegion
    var descriptor: OwnedDescriptor
  }

  let current: MemoryTable
  let kept: [MemoryTable.Entry]
  let additions: [Addition]

  /// SET_MEM_TABLE: replaces everything.
  ///
  /// - Parameters:
  ///   - descriptors: as many as regions; the caller has checked.
  ///   - budget: bytes that all regions together may have.
  init(
    replacing current: MemoryTable, with regions: [MemoryRegion], _ descriptors: [OwnedDescriptor], budget: UInt64 = .max
  ) throws(MemoryTableError) {
    try Self.check(regions, budget)
    self.current = current
    self.kept = []
    self.additions = zip(regions, descriptors).map { Addition(region: $0, descriptor: $1) }
  }

  /// ADD_MEM_REG.
  init(
    adding region: MemoryRegion, _ descriptor: OwnedDescriptor, to current: MemoryTable, budget: UInt64 = .max
  ) throws(MemoryTableError) {
    try Self.check(current.regions + [region], budget)
    self.current = current
    self.kept = current.entries
    self.additions = [Addition(region: region, descriptor: descriptor)]
  }

  /// REM_MEM_REG: the offset is not part of the match.
  init(removing region: MemoryRegion, from current: MemoryTable) throws(MemoryTableError) {
    let kept = current.entries.filter {
      ($0.region.guestAddress, $0.region.userAddress, $0.region.size)
        != (region.guestAddress, region.userAddress, region.size)
    }
    guard kept.count < current.entries.count else { throw .noSuchRegion(region) }
    self.current = current
    self.kept = kept
    self.additions = []
  }

  private static func check(_ regions: [MemoryRegion], _ budget: UInt64) throws(MemoryTableError) {
    guard regions.count <= GuestMemory.maximumRegions else {
      throw .tooManyRegions(regions.count, limit: GuestMemory.maximumRegions)
    }
    for region in regions {
      guard region.size > 0 else { throw .empty(region) }
      guard region.guestAddress.advanced(by: region.size - 1) != nil else { throw .guestRangeOverflows(region) }
      guard !region.userAddress.addingReportingOverflow(region.size - 1).overflow else {
        throw .userRangeOverflows(region)
      }
      // Half of the signed range, so that rounding to a page cannot overflow either.
      let (end, overflow) = region.offset.addingReportingOverflow(region.size)
      guard !overflow, end <= UInt64(Int64.max / 2) else { throw .fileRangeOverflows(region) }
    }
    // Computed without a sum that could overflow.
    var total: UInt64 = 0
    for region in regions {
      guard total <= budget, region.size <= budget - total else { throw .overBudget(regions.count, budget: budget) }
      total += region.size
    }
    if let (one, other) = overlap(regions, by: \.guestAddress.rawValue) { throw .guestRangesOverlap(one, other) }
    if let (one, other) = overlap(regions, by: \.userAddress) { throw .userRangesOverlap(one, other) }
  }

  /// Two regions that share an address in one of the address spaces. The regions have been checked not to overflow.
  private static func overlap(
    _ regions: [MemoryRegion], by start: (MemoryRegion) -> UInt64
  ) -> (MemoryRegion, MemoryRegion)? {
    let sorted = regions.sorted { start($0) < start($1) }
    return zip(sorted, sorted.dropFirst()).first { start($1) - start($0) < $0.size }
  }
}

// MARK: Against files

extension MemoryPlan {
  /// Maps what is new. A region that was in the table with the same numbers and the same file keeps its mapping.
  public func carryOut() -> Result<MemoryTable, MemoryTableError> {
    do throws(MemoryTableError) { return .success(try mapAll()) } catch { return .failure(error) }
  }

  private func mapAll() throws(MemoryTableError) -> MemoryTable {
    var entries = kept
    for addition in additions { entries.append(try map(addition, beside: entries)) }
    do {
      let regions = entries.map {
        GuestRegion(start: $0.region.guestAddress, size: $0.region.size, mapping: $0.mapping, offset: $0.offset)
      }
      return MemoryTable(entries, memory: try GuestMemory(regions))
    } catch {
      preconditionFailure("a checked plan makes a memory: \(error)")
    }
  }

  /// - Parameter others: regions that are in the table already.
  private func map(
    _ addition: Addition, beside others: [MemoryTable.Entry]
  ) throws(MemoryTableError) -> MemoryTable.Entry {
    let region = addition.region
    var information = stat()
    guard unsafe fstat(addition.descriptor.rawValue, &information) == 0 else {
      throw .notMappable(region, Errno(rawValue: errno))
    }
    // Accessing a mapping past the end of its file is a fault, so the file has to be long enough now. Devices have no length to
    // compare with.
    if information.st_mode & S_IFMT == S_IFREG, UInt64(max(information.st_size, 0)) < region.offset + region.size {
      throw .fileTooSmall(region, fileSize: Int64(information.st_size))
    }
    let file = MemoryTable.FileIdentity(device: UInt64(information.st_dev), inode: UInt64(information.st_ino))
    if let same = current.entries.first(where: { $0.region == region && $0.file == file }) { return same }

    // Offset and length of a mapping are multiples of the page size, which on hugetlbfs is the block size of the file.
    let page = Self.pageSize(blockSize: Int64(information.st_blksize))
    let start = region.offset / page * page
    let length = (region.offset - start + region.size + page - 1) / page * page
    do {
      let mapping = try Mapping(
        descriptor: addition.descriptor.rawValue, offset: Int64(start), count: Int(length),
        unmappedBy: addition.descriptor.disposer)
      return MemoryTable.Entry(
        region: region, mapping: mapping, offset: Int(region.offset - start), file: file,
        // One descriptor is kept for all regions of a file, because any of them will do.
        descriptor: others.first { $0.file == file }?.descriptor ?? addition.descriptor)
    } catch {
      throw .notMappable(region, error)
    }
  }

  private static func pageSize(blockSize: Int64) -> UInt64 {
    let page = UInt64(max(sysconf(Int32(_SC_PAGESIZE)), 4096))
    let isPowerOfTwo = blockSize > 0 && blockSize & (blockSize - 1) == 0
    return isPowerOfTwo && blockSize <= 1 << 30 ? max(page, UInt64(blockSize)) : page
  }
}
