/// A piece of a file (or of anonymous memory) mapped into this process, unmapped when its last owner releases it.
internal import CLinux
internal import Glibc
public import SystemPackage

/// A mapping. A class so that a new memory table can keep the regions that did not change, and so that running queues keep what
/// they use until they are stopped.
@safe
public final class Mapping: @unchecked Sendable {
  /// Where it begins in this process. Valid for as long as the mapping exists.
  public let base: UnsafeMutableRawPointer
  /// Bytes mapped.
  public let count: Int
  /// Its entry in the fault table; `nil` for anonymous memory, which cannot be truncated.
  private let entry: Int?
  /// Unmaps it; `nil`: the thread that releases it last does.
  private let disposer: (any Disposer)?

  /// Maps `count` bytes of `descriptor` from `offset` on, shared. The descriptor can be closed afterwards.
  ///
  /// - Parameters:
  ///   - offset: bytes, a multiple of the page size (of the huge page size on hugetlbfs).
  ///   - readOnly: map without write permission.
  ///   - disposer: unmaps it, for a file that another process handed over.
  /// - Throws: the error of `mmap`; ENOMEM also if the rest of the address space has to be kept for other things (see
  ///   `AddressSpace`).
  public init(
    descriptor: Int32, offset: Int64 = 0, count: Int, readOnly: Bool = false, unmappedBy disposer: (any Disposer)? = nil
  ) throws(Errno) {
    guard count > 0 else { throw .invalidArgument }
    try AddressSpace.shared.reserve(count)
    let protection = readOnly ? PROT_READ : PROT_READ | PROT_WRITE
    let address = unsafe mmap(nil, count, protection, MAP_SHARED, descriptor, off_t(offset))
    guard let address = unsafe address, unsafe address != MAP_FAILED else {
      let error = Errno(rawValue: errno)
      AddressSpace.shared.release(count)
      throw error
    }
    guard let entry = unsafe FaultTable.shared.add(address, count: count) else {
      _ = unsafe munmap(address, count)
      AddressSpace.shared.release(count)
      throw .noMemory
    }
    // Neither a guest's memory nor its disk belongs in a core dump.
    _ = unsafe madvise(address, count, MADV_DONTDUMP)
    unsafe self.base = address
    self.count = count
    self.entry = entry
    self.disposer = disposer
  }

  /// Maps `count` bytes of fresh anonymous memory, zeroed on first touch and private to this process.
  public init(anonymous count: Int) throws(Errno) {
    guard count > 0 else { throw .invalidArgument }
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    let address = unsafe mmap(nil, count, PROT_READ | PROT_WRITE, flags, -1, 0)
    guard let address = unsafe address, unsafe address != MAP_FAILED else { throw Errno(rawValue: errno) }
    unsafe self.base = address
    self.count = count
    entry = nil
    disposer = nil
  }

  deinit {
    // Removed from the table first: as soon as it is unmapped, another mapping may be made at the same address.
    if let entry { FaultTable.shared.remove(entry) }
    let (address, count, isCounted) = unsafe (UInt(bitPattern: base), count, entry != nil)
    guard let disposer else { return Self.unmap(address, count, isCounted) }
    disposer.dispose { Self.unmap(address, count, isCounted) }
  }

  private static func unmap(_ address: UInt, _ count: Int, _ isCounted: Bool) {
    if let base = unsafe UnsafeMutableRawPointer(bitPattern: address) { _ = unsafe munmap(base, count) }
    if isCounted { AddressSpace.shared.release(count) }
  }

  /// How often a page turned out to be gone because the file was truncated (see `FaultGuard`). What is read from such a mapping
  /// may no longer be the file's contents, and what is written to it may be lost.
  public var faults: UInt64 { faultCount?.loadRelaxed() ?? 0 }

  /// The counter behind `faults`, for callers that read it so often that reference counting would cost too much; `nil` for
  /// memory that cannot be truncated. It stays readable, but belongs to this mapping only while the mapping exists.
  public var faultCount: SharedCell<UInt64>? { entry.flatMap { FaultTable.shared.faultCount($0) } }
}
