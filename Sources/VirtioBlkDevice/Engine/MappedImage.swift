/// An image mapped into the process: one mapping, one set of page tables and one knowledge of holes for all queues of a device.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
final class MappedImage: @unchecked Sendable {
  let mapping: Mapping
  /// Where touching a hole fills it, what is data; in the page cache, what is there; elsewhere page faults do everything.
  let windows: PopulatedWindows?
  /// It is the page cache that is mapped, and a medium is behind it.
  let isCache: Bool
  /// Keeps the descriptor open.
  private let image: ImageFile
  /// Not 0: the file was cut, or the memory under it ran out, or it has grown beyond the mapping. From then on every operation is a
  /// system call, which can say so.
  let cut: SharedCell<UInt32>
  /// From so many bytes on a copy into it goes around the caches.
  let streamedFrom: Int

  private let word: UnsafeMutablePointer<UInt32>

  /// - Parameter isCache: only what is in the page cache is to be touched.
  init(_ image: ImageFile, isCache: Bool = false) throws(Errno) {
    guard let size = Int(exactly: image.size) else { throw .noMemory }
    let mapping = try Mapping(descriptor: image.descriptor, count: size, readOnly: image.isReadOnly)
    windows =
      image.fillsHolesWhenTouched || isCache
      ? try PopulatedWindows(mapping, descriptor: image.descriptor, isReadOnly: image.isReadOnly) : nil
    // A page that is missing all the same brings no others: somebody waits for it.
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

  /// Bytes that it is said to have; more than are mapped when it has grown.
  var size: UInt64 { image.state.size.loadRelaxed() }

  /// It can be cut; a block device cannot.
  var isFile: Bool { !image.isBlockDevice }
}
