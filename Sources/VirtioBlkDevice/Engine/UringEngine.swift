/// io_uring: operations, kicks and the mailbox in one ring, so that one system call submits, sleeps and reaps completions.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct UringEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false

  /// The upper half of a completion's user data; the lower half is a tag or a lane.
  private enum Mark {
    static let operation: UInt64 = 0
    static let kick: UInt64 = 1
    static let mailbox: UInt64 = 2
    static let cancel: UInt64 = 3
  }

  /// A kick source that the ring waits on.
  private struct Watch {
    var kick: KickSource
    /// Distinguishes completions of this watch from those of an earlier one on the same lane.
    var generation: UInt16
  }

  let ring: UnsafeMutablePointer<io_uring>
  private let descriptor: Int32
  private let mailbox: Int32
  private let setup: UringSetup
  /// Only if kicks go through epoll.
  private var waiter: EpollWaiter?
  private let completionCounter: OwnedDescriptor?
  private var buffers: RegisteredBuffers
  /// Kernel workers do what cannot be done at once, and take CPU time; a device does not.
  private let hasWorkers: Bool
  /// Operations in the kernel, and those about to be submitted.
  private var inFlight: Int
  /// Operations prepared since the last submission.
  private var prepared: Int
  private var parts: BatchParts
  private var watches: [Int: Watch]
  private var nextGeneration: UInt16
  /// Only if the ring is lost: the mailbox is readable.
  private var mailboxRang = false
  /// Threads that wait for doorbells, if the kernel cannot wait for them in the ring.
  private var bridges: [Int: DoorbellWatch]
  private(set) var systemCalls: UInt64
  /// A call into the ring failed with an error that no later attempt can change.
  private(set) var isLost: Bool

  /// Entries that one call can submit; more of them take several calls.
  private static let submissionEntries = 256

  /// - Parameters:
  ///   - isSlow: the medium is not memory.
  ///   - depth: operations that can be in flight at once.
  init(descriptor: Int32, isSlow: Bool = true, mailbox: Int32, depth: Int, setup: UringSetup) throws(Errno) {
    let throughEpoll = setup.kicksThroughEpoll || setup.poll != .off
    let counter = throughEpoll ? try OwnedDescriptor.eventCounter() : nil
    let waiter: EpollWaiter? =
      if let counter { try EpollWaiter(mailbox: mailbox, completions: counter.rawValue) } else { nil }
    let ring = unsafe try Self.makeRing(setup, completions: depth + 64)
    var file = descriptor
    var result: Int32 = 0
    if setup.registersFile { result = unsafe io_uring_register_files(ring, &file, 1) }
    if result == 0, let counter { result = unsafe io_uring_register_eventfd(ring, counter.rawValue) }
    // Only the thread that enables a ring may submit to it: this one.
    if result == 0 { result = unsafe UringRestrictions.begin(ring) }
    guard result == 0 else {
      unsafe io_uring_queue_exit(ring)
      unsafe ring.deallocate()
      throw Errno(rawValue: -result)
    }
    unsafe self.ring = ring
    self.descriptor = descriptor
    self.mailbox = mailbox
    self.setup = setup
    self.waiter = waiter
    completionCounter = counter
    buffers = RegisteredBuffers()
    hasWorkers = !isSlow
    inFlight = 0
    prepared = 0
    parts = BatchParts(setup.handover, isSlow: isSlow)
    watches = [:]
    nextGeneration = 0
    bridges = [:]
    systemCalls = 0
    isLost = false
    // Saves a descriptor look-up at each call; if the kernel does not support that, nothing changes.
    if setup.registersRing { _ = unsafe io_uring_register_ring_fd(ring) }
    if !throughEpoll { armMailbox() }
  }

  deinit {
    unsafe io_uring_queue_exit(ring)
    unsafe ring.deallocate()
  }

  /// Makes a ring with the setup that was requested, or the next best that this kernel supports.
  private static func makeRing(_ setup: UringSetup, completions: Int) throws(Errno) -> UnsafeMutablePointer<io_uring> {
    let ring = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
    unsafe ring.initialize(to: io_uring())
    var base = UInt32(IORING_SETUP_CLAMP) | UInt32(IORING_SETUP_CQSIZE)
    if setup.poll != .off { base |= UInt32(IORING_SETUP_IOPOLL) }
    if setup.poll == .hybrid { base |= UInt32(clinux_setup_hybrid_iopoll) }
    let completions = UInt32(min(max(completions, 2 * submissionEntries), 16384))
    let submitAll = UInt32(IORING_SETUP_SUBMIT_ALL)
    let deferred = UInt32(IORING_SETUP_SINGLE_ISSUER) | UInt32(IORING_SETUP_DEFER_TASKRUN) | submitAll
    // A flag tells when there is task work to run, so that checking costs no system call.
    let cooperative = UInt32(IORING_SETUP_COOP_TASKRUN) | UInt32(IORING_SETUP_TASKRUN_FLAG) | submitAll
    let choices: [UInt32]
    switch setup.completion {
    case .deferred: choices = [deferred | UInt32(IORING_SETUP_TASKRUN_FLAG), cooperative, 0]
    case .cooperative: choices = [cooperative, 0]
    case .plain: choices = [submitAll, 0]
    case .submissionThread(let cpu):
      choices = [UInt32(IORING_SETUP_SQPOLL) | (cpu == nil ? 0 : UInt32(IORING_SETUP_SQ_AFF)) | submitAll]
    }
    var result: Int32 = 0
    // A disabled ring accepts nothing until its restrictions are registered (Linux 5.10).
    for choice in choices.map({ $0 | UInt32(IORING_SETUP_R_DISABLED) }) + choices {
      var parameters = io_uring_params()
      parameters.flags = base | choice
      parameters.cq_entries = completions
      if case .submissionThread(let cpu) = setup.completion {
        parameters.sq_thread_cpu = UInt32(cpu ?? 0)
        parameters.sq_thread_idle = 1000  // milliseconds without work before it sleeps
      }
      if setup.usesIndexArray {
        result = unsafe io_uring_queue_init_params(UInt32(submissionEntries), ring, &parameters)
      } else {
        parameters.flags |= clinux_setup_no_sqarray
        result = unsafe clinux_make_ring_without_array(UInt32(submissionEntries), ring, &parameters)
      }
      if result == 0 { return unsafe ring }
      guard result == -EINVAL else { break }
    }
    unsafe ring.deallocate()
    throw Errno(rawValue: -result)
  }

  /// Checks whether this process may use io_uring at all. - Throws: why not.
  static func probe() throws(Errno) {
    if let refusal { throw refusal }
  }

  /// Tried once, not for each of a thousand disks: a process never gains the right later.
  private static let refusal: Errno? = {
    do throws(Errno) {
      let ring = unsafe try makeRing(UringSetup(), completions: 1)
      defer {
        unsafe io_uring_queue_exit(ring)
        unsafe ring.deallocate()
      }
      let begun = unsafe UringRestrictions.begin(ring)
      guard begun == 0 else { return Errno(rawValue: -begun) }
      // A seccomp filter may allow a ring to be created but not to be entered.
      if let entry = unsafe io_uring_get_sqe(ring) { unsafe io_uring_prep_nop(entry) }
      let result = unsafe io_uring_submit_and_wait(ring, 1)
      // Evaluated here, on a thread that may still create rings, because the probe creates one.
      _ = hasFutexWait
      return result < 0 ? Errno(rawValue: -result) : nil
    } catch { return error }
  }()

  // MARK: Operations

  @inline(__always)
  private mutating func entry() -> UnsafeMutablePointer<io_uring_sqe> {
    while true {
      if let entry = unsafe io_uring_get_sqe(ring) { return unsafe entry }
      // More operations were started than the ring has entries: submit what there is.
      handOver()
      if isLost { return unsafe makeRoom() }
    }
  }

  /// For a lost ring: drops what was prepared; what is prepared from now on is dropped, too.
  @inline(never)
  private mutating func makeRoom() -> UnsafeMutablePointer<io_uring_sqe> {
    unsafe clinux_forget_prepared(ring)
    guard let entry = unsafe io_uring_get_sqe(ring) else { preconditionFailure("an empty ring has an entry") }
    return unsafe entry
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    if parts.isDue(prepared) { handOver() }
    let entry = unsafe entry()
    switch operation.kind {
    case .read, .write:
      unsafe prepareTransfer(entry, operation)
    case .flush:
      unsafe io_uring_prep_fsync(entry, file, UInt32(IORING_FSYNC_DATASYNC))
    case .punchHole, .zeroRange, .allocate, .blockDiscard:
      unsafe io_uring_prep_fallocate(
        entry, file, operation.kind.allocationMode, off_t(operation.offset), off_t(operation.length))
    }
    if setup.registersFile { unsafe entry.pointee.flags |= UInt8(clinux_sqe_fixed_file) }
    unsafe io_uring_sqe_set_data64(entry, Mark.operation << 32 | UInt64(tag))
    inFlight &+= 1
    prepared &+= 1
    return .pending
  }

  /// The file of an entry: 0 in the ring's own table, or the image's descriptor.
  private var file: Int32 { setup.registersFile ? 0 : descriptor }

  @inline(__always)
  private mutating func prepareTransfer(_ entry: UnsafeMutablePointer<io_uring_sqe>, _ operation: IOOperation) {
    let segments = unsafe operation.segments
    let isRead = operation.kind == .read
    if operation.segmentCount == 1, let segment = unsafe segments?.pointee {
      let count = UInt32(truncatingIfNeeded: operation.length)
      if !buffers.isEmpty, let buffer = buffers.index(of: segment) {
        if isRead {
          unsafe io_uring_prep_read_fixed(entry, file, segment.base, count, operation.offset, buffer)
        } else {
          unsafe io_uring_prep_write_fixed(entry, file, segment.base, count, operation.offset, buffer)
        }
      } else if isRead {
        unsafe io_uring_prep_read(entry, file, segment.base, count, operation.offset)
      } else {
        unsafe io_uring_prep_write(entry, file, segment.base, count, operation.offset)
      }
    } else {
      let vectors = unsafe UnsafeRawPointer(segments)?.assumingMemoryBound(to: iovec.self)
      let count = UInt32(operation.segmentCount)
      if isRead {
        unsafe io_uring_prep_readv(entry, file, vectors, count, operation.offset)
      } else {
        unsafe io_uring_prep_writev(entry, file, vectors, count, operation.offset)
      }
    }
    if operation.isDurable { unsafe clinux_sqe_set_rw_flags(entry, clinux_rwf_dsync) }
  }

  /// A ring that polls its device accepts nothing else.
  var takesOnlyTransfers: Bool { setup.poll != .off }

  var awaitsThreads: Bool { hasWorkers && inFlight > 0 }

  mutating func submit() {
    parts.begin()
    handOver()
  }

  /// Checks the result of a call into the ring.
  @inline(__always)
  private mutating func check(_ result: Int32) { if result < 0 { checkError(-result) } }

  /// An interrupted or busy call leaves the entries in the ring; the next turn submits them.
  @inline(never)
  private mutating func checkError(_ error: Int32) {
    switch error {
    case EINTR, EAGAIN, EBUSY, ETIME: break
    // Any other error is permanent: a filter of system calls, or a thread that may not enter this ring.
    default: isLost = true
    }
  }

  private mutating func handOver() {
    guard unsafe io_uring_sq_ready(ring) > 0 else { return }
    // With a submission thread most submissions take no system call at all; liburing makes one only to wake that thread.
    if unsafe !usesSubmissionThread || clinux_sq_needs_wakeup(ring) != 0 { systemCalls &+= 1 }
    prepared = 0
    check(unsafe io_uring_submit(ring))
  }

  private var usesSubmissionThread: Bool {
    if case .submissionThread = setup.completion { true } else { false }
  }

  mutating func wait(nanoseconds: Int64?) {
    guard !isLost else { return waitForMailbox(nanoseconds: nanoseconds) }
    if waiter != nil { return waitThroughEpoll(nanoseconds: nanoseconds) }
    systemCalls &+= 1
    prepared = 0
    parts.begin()
    // Everything in flight completes eventually, so waiting for several at once comes to an end.
    let count = UInt32(setup.minimumWait > 1 && inFlight >= setup.minimumWait ? setup.minimumWait : 1)
    if let nanoseconds {
      var limit = __kernel_timespec(tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000)
      var first: UnsafeMutablePointer<io_uring_cqe>? = nil
      if nanoseconds == 0 {
        check(unsafe io_uring_submit_and_get_events(ring))
      } else {
        check(unsafe io_uring_submit_and_wait_timeout(ring, &first, count, &limit, nil))
      }
    } else {
      check(unsafe io_uring_submit_and_wait(ring, count))
    }
  }

  /// Waits for the mailbox, the only thing left to wait for if the ring is lost.
  private mutating func waitForMailbox(nanoseconds: Int64?) {
    var entry = pollfd(fd: mailbox, events: Int16(POLLIN), revents: 0)
    let timeout = nanoseconds.map { Int32(clamping: ($0 + 999_999) / 1_000_000) } ?? -1
    mailboxRang = unsafe Glibc.poll(&entry, 1, timeout) == 1
  }

  private mutating func waitThroughEpoll(nanoseconds: Int64?) {
    submit()
    // A ring that polls its device completes nothing unless it is entered.
    if unsafe io_uring_cq_ready(ring) == 0, setup.poll == .off || inFlight == 0 {
      systemCalls &+= 1
      waiter?.wait(nanoseconds: nanoseconds)
    }
    collect()
  }

  mutating func poll() {
    guard !isLost else { return }
    if waiter != nil {
      systemCalls &+= 1
      waiter?.wait(nanoseconds: 0)
    }
    collect()
  }

  /// Enters the kernel for completions that are not in the completion queue yet.
  private mutating func collect() {
    guard unsafe (setup.poll != .off && inFlight > 0) || clinux_sq_has_taskrun(ring) != 0 else { return }
    systemCalls &+= 1
    check(unsafe io_uring_get_events(ring))
  }

  @inline(__always)
  mutating func nextEvent() -> EngineEvent? {
    // What is in flight counts as failed once the ring is lost; later completions are ignored.
    guard !isLost else { return nextWake() }
    var data: UInt64 = 0
    var result: Int32 = 0
    var flags: UInt32 = 0
    while unsafe clinux_take_cqe(ring, &data, &result, &flags) != 0 {
      if data >> 32 == Mark.operation {
        inFlight &-= 1
        return .completion(tag: UInt32(truncatingIfNeeded: data), result: result)
      }
      if let event = otherEvent(data, flags: flags) { return event }
    }
    return waiter != nil ? nextWake() : nil
  }

  @inline(never)
  private mutating func nextWake() -> EngineEvent? {
    if mailboxRang {
      mailboxRang = false
      return .mailbox
    }
    while let wake = waiter?.nextWake() {
      switch wake {
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox: return .mailbox
      case .completions: continue
      }
    }
    return nil
  }

  @inline(never)
  private mutating func otherEvent(_ data: UInt64, flags: UInt32) -> EngineEvent? {
    let goesOn = flags & UInt32(IORING_CQE_F_MORE) != 0
    switch data >> 32 & 0xffff {
    case Mark.mailbox:
      if !goesOn { armMailbox() }
      return .mailbox
    case Mark.kick:
      let lane = Int(UInt32(truncatingIfNeeded: data))
      guard let watch = watches[lane], watch.generation == UInt16(truncatingIfNeeded: data >> 48) else { return nil }
      if !goesOn { arm(watch, lane: lane) }
      return .kick(lane: lane)
    default: return nil
    }
  }

  // MARK: Kicks

  /// A multishot poll completes once for each signal, although nobody reads the counter.
  private mutating func armMailbox() {
    let entry = unsafe entry()
    unsafe io_uring_prep_poll_multishot(entry, mailbox, UInt32(POLLIN))
    unsafe io_uring_sqe_set_data64(entry, Mark.mailbox << 32)
  }

  private mutating func arm(_ watch: Watch, lane: Int) {
    let mark = UInt64(watch.generation) << 48 | Mark.kick << 32 | UInt64(UInt32(lane))
    switch watch.kick {
    case .eventCounter(let counter):
      let entry = unsafe entry()
      unsafe io_uring_prep_poll_multishot(entry, counter.rawValue, UInt32(POLLIN))
      unsafe io_uring_sqe_set_data64(entry, mark)
    case .doorbell(let doorbell):
      // The counter is read before the lane looks at its ring (every arming reports or follows a kick): a ring of the
      // bell after this read ends the wait at once.
      let seen = doorbell.counter.loadAcquire()
      let entry = unsafe entry()
      unsafe clinux_prep_futex_wait(entry, doorbell.counter.address, seen)
      unsafe io_uring_sqe_set_data64(entry, mark)
    case .none: break
    }
  }

  mutating func use(_ memory: GuestMemory) {
    if setup.registersBuffers { unsafe buffers.register(memory, with: ring) }
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) {
    guard waiter == nil else {
      try waiter?.watch(kick, lane: lane)
      return
    }
    var kick = kick
    if case .doorbell(let doorbell) = kick, !Self.hasFutexWait {
      // On an older kernel, a small thread turns the doorbell into an eventfd.
      let bridge = try DoorbellWatch(doorbell)
      bridges[lane] = bridge
      kick = .eventCounter(bridge.rung)
    }
    nextGeneration &+= 1
    let watch = Watch(kick: kick, generation: nextGeneration)
    watches[lane] = watch
    arm(watch, lane: lane)
  }

  mutating func unwatch(lane: Int) {
    waiter?.unwatch(lane: lane)
    guard let watch = watches.removeValue(forKey: lane) else { return }
    let entry = unsafe entry()
    let mark = UInt64(watch.generation) << 48 | Mark.kick << 32 | UInt64(UInt32(lane))
    unsafe io_uring_prep_cancel64(entry, mark, 0)
    unsafe io_uring_sqe_set_data64(entry, Mark.cancel << 32)
    submit()
    bridges.removeValue(forKey: lane)?.stop()
  }

  /// Whether the kernel can wait for a futex in a ring (Linux 6.7).
  private static let hasFutexWait: Bool = {
    guard let probe = unsafe io_uring_get_probe() else { return false }
    defer { unsafe io_uring_free_probe(probe) }
    return unsafe io_uring_opcode_supported(probe, clinux_op_futex_wait) != 0
  }()
}
