/// An image mapped into the process: one mapping, one set of page tables and one record of holes for all queues of a device.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
final class MappedImage: @unchecked Sendable {
  let mapping: Mapping
  /// If touching a hole fills it: which windows are data. In the page cache: which are resident. `nil`: page faults do
  /// everything.
  let windows: PopulatedWindows?
  /// The mapping is of the page cache, with a medium behind it.
  let isCache: Bool
  /// Keeps the descriptor open.
  private let image: ImageFile
  /// Not 0: the file was truncated, or the memory under it ran out, or it has grown beyond the mapping. From then on every
  /// operation is a system call, which reports such errors.
  let cut: SharedCell<UInt32>
  /// Copies of at least this many bytes into it bypass the caches.
  let streamedFrom: Int

  private let word: UnsafeMutablePointer<UInt32>

  /// - Parameter isCache: only pages in the page cache may be touched.
  init(_ image: ImageFile, isCache: Bool = false) throws(Errno) {
    guard let size = Int(exactly: image.size) else { throw .noMemory }
    let mapping = try Mapping(descriptor: image.descriptor, count: size, readOnly: image.isReadOnly)
    windows =
      image.fillsHolesWhenTouched || isCache
      ? try PopulatedWindows(mapping, descriptor: image.descriptor, isReadOnly: image.isReadOnly) : nil
    // If a page is missing after all, no others are read ahead, because a request waits for it.
    if isCache { _ = unsafe madvise(mapping.base, mapping.count, MADV_RANDOM) }
    self.isCache = isCache
    self.image = image
    self.mapping = mapping
    streamedFrom = CopyKernel.streamedFrom(imageSize: image.size)
    unsafe word = .allocate(capacity: 1)
    unsafe word.initialize(to: 0)
    cut = unsafe SharedCell(word)
  }

  deinit { unsafe word.deallocate() }

  /// The size of the disk, bytes; more than is mapped if it has grown.
  var size: UInt64 { image.state.size.loadRelaxed() }

  /// It can be truncated, unlike a block device.
  var isFile: Bool { !image.isBlockDevice }
}
