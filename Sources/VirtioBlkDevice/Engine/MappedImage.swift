/// An image mapped into the process: one mapping, one set of page tables and one knowledge of holes for all queues of a device.
internal import SystemPackage
internal import VirtioCore

@safe
final class MappedImage: @unchecked Sendable {
  let mapping: Mapping
  /// Where touching a hole fills it, what is data; elsewhere page faults do everything.
  let windows: PopulatedWindows?
  /// Keeps the descriptor open.
  private let image: ImageFile
  /// Not 0: the file was cut, or the memory under it ran out. From then on every operation is a system call, which can say so.
  let cut: SharedCell<UInt32>

  private let word: UnsafeMutablePointer<UInt32>

  init(_ image: ImageFile) throws(Errno) {
    guard let size = Int(exactly: image.size) else { throw .noMemory }
    let mapping = try Mapping(descriptor: image.descriptor, count: size, readOnly: image.isReadOnly)
    windows =
      image.fillsHolesWhenTouched
      ? try PopulatedWindows(mapping, descriptor: image.descriptor, isReadOnly: image.isReadOnly) : nil
    self.image = image
    self.mapping = mapping
    unsafe word = .allocate(capacity: 1)
    unsafe word.initialize(to: 0)
    cut = unsafe SharedCell(word)
  }

  deinit { unsafe word.deallocate() }
}
