/// The medium's operations as plain system calls, made in the calling thread.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// System calls on one descriptor; all errno handling of blocking I/O is here.
struct PlainIO: MediumCalls {
  let descriptor: Int32

  /// - Returns: bytes transferred, 0 for operations without data, or a negative errno.
  @inline(__always)
  func perform(_ operation: IOOperation) -> Int32 {
    switch operation.kind {
    case .read, .write:
      let isRead = operation.kind == .read
      guard operation.segmentCount == 1, isRead || !operation.isDurable, let segment = unsafe operation.segments?.pointee else {
        // With separate arguments, so that the path for a single piece keeps the operation in registers.
        return unsafe vectored(
          operation.segments, operation.segmentCount, operation.offset, isRead: isRead, isDurable: operation.isDurable)
      }
      let length = Int(truncatingIfNeeded: operation.length)
      let offset = off_t(truncatingIfNeeded: operation.offset)
      let count =
        unsafe isRead ? pread(descriptor, segment.base, length, offset) : pwrite(descriptor, segment.base, length, offset)
      return count < 0 ? -errno : Int32(truncatingIfNeeded: count)
    case .flush: return fdatasync(descriptor) < 0 ? -errno : 0
    case .punchHole, .zeroRange, .allocate, .blockDiscard: return changeRange(operation)
    }
  }

  @inline(never)
  private func vectored(
    _ segments: UnsafeMutablePointer<MemorySegment>?, _ count: Int, _ offset: UInt64, isRead: Bool, isDurable: Bool
  ) -> Int32 {
    guard let segments = unsafe segments else { return 0 }
    let vectors = unsafe UnsafeRawPointer(segments).assumingMemoryBound(to: iovec.self)
    let flags = isDurable ? clinux_rwf_dsync : 0
    let result =
      isRead
      ? unsafe preadv2(descriptor, vectors, Int32(count), off_t(offset), flags)
      : unsafe pwritev2(descriptor, vectors, Int32(count), off_t(offset), flags)
    return result < 0 ? -errno : Int32(truncatingIfNeeded: result)
  }

  @inline(never)
  func changeRange(_ operation: IOOperation) -> Int32 {
    if operation.kind == .blockDiscard {
      return clinux_block_discard(descriptor, operation.offset, operation.length) < 0 ? -errno : 0
    }
    let result = fallocate(descriptor, operation.kind.allocationMode, off_t(operation.offset), off_t(operation.length))
    return result < 0 ? -errno : 0
  }
}

extension IOOperation.Kind {
  /// The mode of fallocate(2).
  var allocationMode: Int32 {
    switch self {
    case .punchHole: Int32(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    case .zeroRange: Int32(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)
    default: Int32(FALLOC_FL_KEEP_SIZE)
    }
  }
}
