/// The medium's operations as plain system calls, made in the calling thread.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// System calls on one descriptor; every errno handling of blocking I/O is here.
struct PlainIO {
  let descriptor: Int32

  /// - Returns: bytes transferred, 0 for operations without data, or a negative errno.
  @inline(__always)
  func perform(_ operation: IOOperation) -> Int32 {
    switch operation.kind {
    case .read:
      guard operation.segmentCount == 1, let segment = unsafe operation.segments?.pointee else { return vectored(operation) }
      let count = unsafe pread(descriptor, segment.base, Int(truncatingIfNeeded: operation.length), off_t(operation.offset))
      return count < 0 ? -errno : Int32(count)
    case .write:
      guard operation.segmentCount == 1, !operation.isDurable, let segment = unsafe operation.segments?.pointee else {
        return vectored(operation)
      }
      let count = unsafe pwrite(descriptor, segment.base, Int(truncatingIfNeeded: operation.length), off_t(operation.offset))
      return count < 0 ? -errno : Int32(count)
    case .flush: return fdatasync(descriptor) < 0 ? -errno : 0
    case .punchHole, .zeroRange, .allocate, .blockDiscard: return changeRange(operation)
    }
  }

  @inline(never)
  private func vectored(_ operation: IOOperation) -> Int32 {
    guard let segments = unsafe operation.segments else { return 0 }
    let vectors = unsafe UnsafeRawPointer(segments).assumingMemoryBound(to: iovec.self)
    let flags = operation.isDurable ? clinux_rwf_dsync : 0
    let offset = off_t(operation.offset)
    let count =
      operation.kind == .read
      ? unsafe preadv2(descriptor, vectors, Int32(operation.segmentCount), offset, flags)
      : unsafe pwritev2(descriptor, vectors, Int32(operation.segmentCount), offset, flags)
    return count < 0 ? -errno : Int32(count)
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
