/// What a ring of the io_uring engine may be used for: its thread's transfers and waits, and nothing else that io_uring can do.
internal import CLinux

/// A filter of system calls does not see what is submitted to a ring; the kernel itself holds it against these (Linux 5.10,
/// io_uring_register_restrictions(3)).
enum UringRestrictions {
  /// What the engine submits. The first is for the probe, the timeout for waits before Linux 5.11.
  private static let operations: [UInt8] =
    [
      IORING_OP_NOP, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_READ,
      IORING_OP_WRITE, IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL, IORING_OP_TIMEOUT,
    ].map { UInt8($0.rawValue) } + [UInt8(clinux_op_futex_wait)]

  /// Memory tables change with the guest's, and the ring's own number is released at the end.
  private static let registrations: [UInt8] = [
    IORING_REGISTER_BUFFERS, IORING_UNREGISTER_BUFFERS, IORING_REGISTER_RING_FDS, IORING_UNREGISTER_RING_FDS,
  ].map { UInt8($0) }

  /// Says so, and lets a ring begin that was made to wait for that. Files and an eventfd are registered before. A ring that
  /// did not wait, on an older kernel, stays as it is.
  ///
  /// - Returns: 0, or a negative error's number.
  static func begin(_ ring: UnsafeMutablePointer<io_uring>) -> Int32 {
    guard unsafe ring.pointee.flags & UInt32(IORING_SETUP_R_DISABLED) != 0 else { return 0 }
    let refused = unsafe clinux_restrict_ring(
      ring, operations, UInt32(operations.count), registrations, UInt32(registrations.count))
    // One who knows rings that wait knows restrictions; what is refused there is refused deliberately.
    guard refused == 0 else { return refused }
    return unsafe clinux_let_ring_begin(ring)
  }
}
