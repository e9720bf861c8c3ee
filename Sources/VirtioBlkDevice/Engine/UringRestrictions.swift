/// The restrictions of an io_uring engine's ring: it may be used for the thread's transfers and waits, and for nothing else.
internal import CLinux

/// A seccomp filter does not see what is submitted to a ring, so the kernel itself checks submissions against these
/// restrictions (Linux 5.10, io_uring_register_restrictions(3)).
enum UringRestrictions {
  /// The operations that the engine submits. The first is for the probe, the timeout for waits before Linux 5.11.
  private static let operations: [UInt8] =
    [
      IORING_OP_NOP, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_READ,
      IORING_OP_WRITE, IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL, IORING_OP_TIMEOUT,
    ].map { UInt8($0.rawValue) } + [UInt8(clinux_op_futex_wait)]

  /// The buffer table changes with the guest's memory, and the ring's own descriptor is unregistered at the end.
  private static let registrations: [UInt8] = [
    IORING_REGISTER_BUFFERS, IORING_UNREGISTER_BUFFERS, IORING_REGISTER_RING_FDS, IORING_UNREGISTER_RING_FDS,
  ].map { UInt8($0) }

  /// Registers the restrictions of a ring that was created disabled, and enables it. Files and an eventfd have to be registered
  /// before. A ring that is already enabled, on an older kernel, stays as it is.
  ///
  /// - Returns: 0, or a negative errno.
  static func begin(_ ring: UnsafeMutablePointer<io_uring>) -> Int32 {
    guard unsafe ring.pointee.flags & UInt32(IORING_SETUP_R_DISABLED) != 0 else { return 0 }
    let refused = unsafe clinux_restrict_ring(
      ring, operations, UInt32(operations.count), registrations, UInt32(registrations.count))
    // A kernel with disabled rings also has restrictions, so a refusal here is deliberate.
    guard refused == 0 else { return refused }
    return unsafe clinux_let_ring_begin(ring)
  }
}
