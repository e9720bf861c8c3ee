/// An aligned buffer for the rare request whose own buffers direct I/O refuses. Allocated when needed, at most one for each
/// slot and at most `size` bytes: a large request passes through it piece by piece.
internal import Glibc
internal import VirtioCore

@safe
struct Bounce: ~Copyable {
  /// Bytes; larger than any alignment.
  static let size = 256 << 10

  let base: UnsafeMutableRawPointer
  /// The buffer as an operation wants it.
  let segment: UnsafeMutablePointer<MemorySegment>

  /// `nil` when there is no memory.
  init?() {
    var base: UnsafeMutableRawPointer? = nil
    guard unsafe posix_memalign(&base, 4096, Self.size) == 0, let base = unsafe base else { return nil }
    unsafe self.base = base
    unsafe segment = .allocate(capacity: 1)
    unsafe segment.initialize(to: MemorySegment(base: base, count: 0))
  }

  deinit {
    unsafe free(base)
    unsafe segment.deallocate()
  }

  /// Copies from the guest's segments, once.
  func fill(from segments: UnsafeMutablePointer<MemorySegment>, count: Int) {
    var copied = 0
    var index = 0
    while copied < count {
      let piece = min(unsafe segments[index].count, count - copied)
      unsafe (base + copied).copyMemory(from: segments[index].base, byteCount: piece)
      copied += piece
      index += 1
    }
  }

  /// Copies into the guest's segments.
  func empty(into segments: UnsafeMutablePointer<MemorySegment>, count: Int) {
    var copied = 0
    var index = 0
    while copied < count {
      let piece = min(unsafe segments[index].count, count - copied)
      unsafe segments[index].base.copyMemory(from: base + copied, byteCount: piece)
      copied += piece
      index += 1
    }
  }
}
