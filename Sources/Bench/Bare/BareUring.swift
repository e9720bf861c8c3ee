/// io_uring with nothing around it: fill, submit and wait for one, take all, fill again.
internal import CLinux
internal import Glibc
internal import SystemPackage

enum BareUring {
  enum Setup {
    /// No flags.
    case plain
    /// SINGLE_ISSUER and DEFER_TASKRUN.
    case deferred
    /// … and file, buffers and ring registered.
    case registered

    fileprivate var flags: UInt32 {
      self == .plain ? 0 : UInt32(IORING_SETUP_SINGLE_ISSUER) | UInt32(IORING_SETUP_DEFER_TASKRUN)
    }
  }

  /// Whether the kernel makes a ring with these flags; the error says why not.
  static func probe(flags: UInt32, cpu: Int? = nil) -> Errno? {
    var ring = unsafe io_uring()
    var parameters = io_uring_params()
    parameters.flags = flags
    parameters.sq_thread_cpu = UInt32(cpu ?? 0)
    parameters.sq_thread_idle = 1
    let result = unsafe io_uring_queue_init_params(8, &ring, &parameters)
    guard result == 0 else { return Errno(rawValue: -result) }
    unsafe io_uring_queue_exit(&ring)
    return nil
  }

  /// Whether the kernel makes a ring without an index array; the error says why not.
  static func probeWithoutArray() -> Errno? {
    var ring = unsafe io_uring()
    var parameters = io_uring_params()
    parameters.flags = clinux_setup_no_sqarray
    let result = unsafe clinux_make_ring_without_array(8, &ring, &parameters)
    guard result == 0 else { return Errno(rawValue: -result) }
    unsafe io_uring_queue_exit(&ring)
    return nil
  }

  /// Whether that many bytes of memory can be registered as buffers.
  static func probeBuffers(_ bytes: Int) -> Errno? {
    var ring = unsafe io_uring()
    let result = unsafe io_uring_queue_init(8, &ring, 0)
    guard result == 0 else { return Errno(rawValue: -result) }
    defer { unsafe io_uring_queue_exit(&ring) }
    let memory = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let memory = unsafe memory, unsafe memory != MAP_FAILED else { return .noMemory }
    defer { _ = unsafe munmap(memory, bytes) }
    var range = unsafe iovec(iov_base: memory, iov_len: bytes)
    let registered = unsafe io_uring_register_buffers(&ring, &range, 1)
    return registered == 0 ? nil : Errno(rawValue: -registered)
  }

  static func run(_ setup: Setup, _ context: inout BareContext) throws(BenchError) {
    let ring = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
    unsafe ring.initialize(to: io_uring())
    defer { unsafe ring.deallocate() }
    let made = unsafe io_uring_queue_init(UInt32(context.depth), ring, setup.flags)
    guard made == 0 else { throw .system("io_uring_setup", Errno(rawValue: -made)) }
    defer { unsafe io_uring_queue_exit(ring) }
    if setup == .registered { unsafe try register(ring, context) }

    var result = BareResult()
    for slot in 0..<context.depth { unsafe try prepare(ring, slot, setup, &context) }
    var inFlight = context.depth
    var isOver = false
    while inFlight > 0 {
      result.systemCalls &+= 1
      let rc = unsafe io_uring_submit_and_wait(ring, 1)
      guard rc >= 0 || rc == -EINTR else { throw .system("io_uring_enter", Errno(rawValue: -rc)) }
      isOver = isOver || context.isOver(result)
      var data: UInt64 = 0
      var outcome: Int32 = 0
      var flags: UInt32 = 0
      while unsafe clinux_take_cqe(ring, &data, &outcome, &flags) != 0 {
        try BareLoop.check(Int(outcome), context)
        result.requests &+= 1
        if isOver { inFlight &-= 1 } else { unsafe try prepare(ring, Int(data), setup, &context) }
      }
    }
  }

  private static func register(_ ring: UnsafeMutablePointer<io_uring>, _ context: borrowing BareContext) throws(BenchError) {
    var file = context.descriptor
    var range = unsafe context.bufferRange
    for (what, result) in [
      ("registering the image with io_uring", unsafe io_uring_register_files(ring, &file, 1)),
      ("registering buffers with io_uring", unsafe io_uring_register_buffers(ring, &range, 1)),
    ] where result < 0 {
      throw .system(what, Errno(rawValue: -result))
    }
    _ = unsafe io_uring_register_ring_fd(ring)
  }

  @inline(__always)
  private static func prepare(
    _ ring: UnsafeMutablePointer<io_uring>, _ slot: Int, _ setup: Setup, _ context: inout BareContext
  ) throws(BenchError) {
    guard let entry = unsafe io_uring_get_sqe(ring) else { throw .system("io_uring_get_sqe", .resourceBusy) }
    let offset = context.nextOffset()
    let count = UInt32(context.blockSize)
    let buffer = unsafe context.buffer(slot)
    if setup == .registered {
      if context.isWrite {
        unsafe io_uring_prep_write_fixed(entry, 0, buffer, count, offset, 0)
      } else {
        unsafe io_uring_prep_read_fixed(entry, 0, buffer, count, offset, 0)
      }
      unsafe entry.pointee.flags |= UInt8(clinux_sqe_fixed_file)
    } else if context.isWrite {
      unsafe io_uring_prep_write(entry, context.descriptor, buffer, count, offset)
    } else {
      unsafe io_uring_prep_read(entry, context.descriptor, buffer, count, offset)
    }
    unsafe io_uring_sqe_set_data64(entry, UInt64(slot))
  }
}
