/// A piece of a file (or of anonymous memory) mapped into this process, unmapped when its last owner releases it.
internal import CLinux
internal import Glibc
public import SystemPackage

/// A shared, writable mapping. A class so that a new memory table can keep the regions that did not change, and so that
/// running queues keep what they use until they are stopped.
@safe
public final class Mapping: @unchecked Sendable {
  /// Where it begins in this process. Valid for as long as the mapping exists.
  public let base: UnsafeMutableRawPointer
  /// Bytes mapped.
  public let count: Int
  /// Where faults are counted; `nil` for memory of this process's own, which cannot be cut.
  private let entry: Int?
  /// Who unmaps it; `nil`: the thread that releases it last.
  private let disposer: (any Disposer)?

  /// Maps `count` bytes of `descriptor` from `offset` on, shared and writable. The descriptor can be closed afterwards.
  ///
  /// - Parameters:
  ///   - offset: bytes, a multiple of the page size (of the huge page size on hugetlbfs).
  ///   - readOnly: map without write permission.
  ///   - disposer: unmaps it, for a file that another process handed over.
  /// - Throws: what `mmap` says; ENOMEM, too, when the process has to keep the address space that is left for other things
  ///   (see `AddressSpace`).
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
    // A guest's memory, and its disk, do not belong in a core dump.
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
    // Out of the table first: as soon as it is unmapped, the place may be somebody else's.
    if let entry { FaultTable.shared.remove(entry) }
    let (address, count, isCounted) = unsafe (UInt(bitPattern: base), count, entry != nil)
    guard let disposer else { return Self.unmap(address, count, isCounted) }
    disposer.dispose { Self.unmap(address, count, isCounted) }
  }

  private static func unmap(_ address: UInt, _ count: Int, _ isCounted: Bool) {
    if let base = unsafe UnsafeMutableRawPointer(bitPattern: address) { _ = unsafe munmap(base, count) }
    if isCounted { AddressSpace.shared.release(count) }
  }

  /// How often a page turned out to be gone because the file was cut (see `FaultGuard`). What is read from such a mapping is
  /// not the file's any more, and what is written to it may go nowhere.
  public var faults: UInt64 { faultCount?.loadRelaxed() ?? 0 }

  /// Where `faults` is counted, for those who look at it more often than a reference count should change; `nil` where nothing
  /// can be cut. It stays readable, but is this mapping's only for as long as that lives.
  public var faultCount: SharedCell<UInt64>? { entry.flatMap { FaultTable.shared.faultCount($0) } }
}
