/// The data file of an image, mapped into the process: data that is in memory is copied, without a system call.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Shared by all queues of a disk. On a file system in memory that serves reads and writes; in the page cache, reads of what is
/// resident. What it does not have (holes, compressed clusters, whatever lies beyond its end) is left to system calls, as is
/// everything once the file was truncated or the memory under it ran out.
@safe
final class Qcow2Mapping: @unchecked Sendable {
  private let mapping: Mapping
  /// Which parts of the file are data: system calls that make holes or fill them report that here.
  let windows: PopulatedWindows
  private let file: OwnedDescriptor
  /// What each copy needs; valid for as long as this object lives.
  let view: View
  /// The part of the process's budget of address space that one file may take.
  private static let share: UInt64 = 16
  /// The length of the file when it was last asked for, bytes.
  private let length: Atomic<UInt64>

  /// - Parameters:
  ///   - file: it is mapped if it is a regular file on a file system in memory, or on one of this machine.
  ///   - end: its length, bytes.
  ///   - growth: how much longer it may become, bytes; 0: it is only read.
  /// - Returns: `nil` if it cannot be mapped.
  init?(_ file: OwnedDescriptor, end: UInt64, growth: UInt64) {
    // A block device's node is itself a file in memory.
    var info = stat()
    let system = MediumSystem(file.rawValue)
    guard AddressSpace.shared.isAmple, unsafe fstat(file.rawValue, &info) == 0, info.st_mode & S_IFMT == S_IFREG,
      system.isOfPages || system.isLocal
    else { return nil }
    let isCache = !system.isOfPages
    // No more than that can be in memory: of a larger file, only the beginning is mapped. The same where address space is
    // scarce, because guests' memory needs it more.
    let memory = UInt64(max(sysconf(Int32(_SC_PHYS_PAGES)), 0)) &* UInt64(PageSize.bytes)
    let (whole, overflow) = end.addingReportingOverflow(growth)
    let isReadOnly = growth == 0 || isCache
    guard !overflow, let room = Int(exactly: min(whole, memory, AddressSpace.shared.bytes / Self.share)), room > 0,
      let mapping = try? Mapping(descriptor: file.rawValue, count: room, readOnly: isReadOnly),
      let windows = try? PopulatedWindows(mapping, descriptor: file.rawValue, isReadOnly: isReadOnly, mayBeLonger: true)
    else { return nil }
    // If a page is missing after all, no others are read ahead, because a request waits for it.
    if isCache { _ = unsafe madvise(mapping.base, mapping.count, MADV_RANDOM) }
    self.mapping = mapping
    self.windows = windows
    self.file = file
    unsafe view = View(
      base: mapping.base, count: UInt64(room), windows: windows.view, faults: mapping.faultCount, isCache: isCache)
    length = Atomic(end)
  }

  /// The file was truncated, or the memory under it ran out: nothing may be copied any more.
  var isLost: Bool { view.isLost }

  /// Whether parts that are not known, or known to lack pages, can be copied after all.
  @inline(never)
  func comesToBeData(_ place: UInt64, _ length: UInt64) -> Bool {
    if windows.look(place, length) == .data { return true }
    // The system call that follows brings the pages in.
    if view.isCache { windows.filled(place, length) }
    return false
  }

  /// Pages have been reclaimed.
  func forgetPages() { if view.isCache { windows.forgetAll() } }

  /// Whether the file is still at least as long as before. Data copied past the end of a truncated file, but within its last
  /// page, is lost without a fault.
  func isWhole() -> Bool {
    guard !view.isCache else { return true }
    let bytes = clinux_file_length(file.rawValue)
    guard bytes >= 0 else { return false }
    let now = UInt64(bytes)
    return length.max(now, ordering: .relaxed).oldValue <= now
  }

  /// A mapping as a copy sees it: no object, so that no reference count changes.
  @safe
  struct View {
    fileprivate let base: UnsafeMutableRawPointer
    /// Bytes that are mapped.
    fileprivate let count: UInt64
    let windows: PopulatedWindows.View
    fileprivate let faults: SharedCell<UInt64>?
    /// In the page cache of a medium, where pages may have to be waited for: it is only read from.
    fileprivate let isCache: Bool

    /// Whether a transfer may be a copy, if its data is in memory. - Parameter place: in the file, bytes.
    @inline(__always)
    func has(_ kind: IOOperation.Kind, at place: UInt64, _ length: UInt64) -> Bool {
      (kind == .read || !isCache) && place < count && length <= count &- place
    }

    fileprivate var isLost: Bool {
      @inline(__always) get { faults?.loadRelaxed() ?? 0 != 0 }
    }

    @inline(__always)
    func address(of place: UInt64) -> UnsafeMutableRawPointer { unsafe base + Int(truncatingIfNeeded: place) }

    /// The reverse.
    @inline(__always)
    func place(of address: UnsafeMutableRawPointer) -> UInt64 { unsafe UInt64(truncatingIfNeeded: address - base) }
  }
}
