/// Aligned buffers for the rare transfer whose own buffers the medium does not accept: a large one is bounced piece by piece.
internal import Glibc
internal import VirtioCore

/// A few buffers for all queues of a worker, allocated when they are first needed. A transfer that finds none waits until one
/// is returned.
@safe
struct BouncePool: ~Copyable {
  /// Bytes of a buffer; larger than any alignment.
  static let size = 256 << 10
  private let limit: Int
  private static let alignment = 4096

  private var buffers: [UnsafeMutablePointer<MemorySegment>] = unsafe []
  private var free: [Int] = []

  /// - Parameter limit: the most buffers that there can be.
  init(limit: Int = 16) { self.limit = limit }

  enum Taken {
    case buffer(Int)
    /// All are in use.
    case allTaken
    /// There is not enough memory for even one.
    case noMemory
  }

  mutating func take() -> Taken {
    if let index = free.popLast() { return .buffer(index) }
    guard unsafe buffers.count < limit else { return .allTaken }
    var base: UnsafeMutableRawPointer? = nil
    guard unsafe posix_memalign(&base, max(Self.alignment, Int(getpagesize())), Self.size) == 0, let base = unsafe base else {
      return unsafe buffers.isEmpty ? .noMemory : .allTaken
    }
    let segment = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 1)
    unsafe segment.initialize(to: MemorySegment(base: base, count: Self.size))
    unsafe buffers.append(segment)
    return unsafe .buffer(buffers.count - 1)
  }

  mutating func give(_ index: Int) { free.append(index) }

  /// The buffer as a segment of an operation. - Parameter bytes: at most `size`.
  func segment(_ index: Int, bytes: Int) -> UnsafeMutablePointer<MemorySegment> {
    let segment = unsafe buffers[index]
    unsafe segment.pointee.count = bytes
    return unsafe segment
  }

  /// Copies data from a transfer's segments, reading them once. - Parameters:
  ///   - skip: bytes from the transfer's beginning.
  ///   - bytes: at most `size`, and at most what is left of the segments.
  func fill(_ index: Int, from operation: IOOperation, skipping skip: Int, bytes: Int) {
    unsafe walk(index, operation, skip, bytes) { buffer, guest, count in
      unsafe buffer.copyMemory(from: guest, byteCount: count)
    }
  }

  /// Copies data into a transfer's segments.
  func empty(_ index: Int, into operation: IOOperation, skipping skip: Int, bytes: Int) {
    unsafe walk(index, operation, skip, bytes) { buffer, guest, count in
      unsafe guest.copyMemory(from: buffer, byteCount: count)
    }
  }

  private func walk(
    _ index: Int, _ operation: IOOperation, _ skip: Int, _ bytes: Int,
    _ copy: (UnsafeMutableRawPointer, UnsafeMutableRawPointer, Int) -> Void
  ) {
    guard let segments = unsafe operation.segments else { return }
    let base = unsafe buffers[index].pointee.base
    var skip = skip
    var copied = 0
    for number in 0..<operation.segmentCount where copied < bytes {
      let segment = unsafe segments[number]
      guard skip < segment.count else {
        skip -= segment.count
        continue
      }
      let count = min(segment.count - skip, bytes - copied)
      unsafe copy(base + copied, segment.base + skip, count)
      copied += count
      skip = 0
    }
  }

  deinit {
    for index in unsafe buffers.indices {
      unsafe release(buffers[index].pointee.base)
      unsafe buffers[index].deallocate()
    }
  }
}

private func release(_ pointer: UnsafeMutableRawPointer) { unsafe Glibc.free(pointer) }
