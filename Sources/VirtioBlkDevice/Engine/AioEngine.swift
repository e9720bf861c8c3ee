/// Linux's older asynchronous interface, through libaio: for systems where io_uring is forbidden. It is asynchronous only with
/// O_DIRECT on a real disk; otherwise the kernel does the work inside io_submit.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Completions are read directly from the ring that the kernel maps into this process, so what is done when io_submit returns
/// costs no second call. Kicks and the mailbox are in an epoll set, and one more operation polls that set, so a single call
/// waits for everything, and a completion need not signal an eventfd.
@safe
struct AioEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  /// The most operations in the kernel at once. By default all processes of a machine share 65536.
  private static let kernelDepth = 256
  /// The data of the poll, in place of a tag.
  private static let pollMark: UInt64 = 1 << 32

  private let medium: PlainIO
  private var waiter: EpollWaiter
  private let context: io_context_t
  /// Whether the kernel's ring has the layout known here; otherwise completions are fetched with a system call.
  private let readsRing: Bool
  /// One control block for each operation that can be in flight and one for the poll, and which of the former are free.
  private let blocks: UnsafeMutablePointer<iocb>
  private let freeBlocks: UnsafeMutablePointer<UInt32>
  private var freeCount: Int
  private let pollBlock: UnsafeMutablePointer<iocb>
  /// The kernel watches the epoll set. A poll reports once and then has to be armed again.
  private var isPolling: Bool
  /// Started and not yet in the kernel, first in first out.
  private let queued: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>
  private var queuedCount: Int
  private var parts: BatchParts
  /// What the last call that slept returned.
  private let completed: UnsafeMutablePointer<io_event>
  private var completedCount: Int
  private var nextCompleted: Int
  /// Operations in the kernel, including the poll.
  private var inKernel: Int
  private var calls: UInt64
  /// Operations that io_submit itself refused; empty unless the medium is broken.
  private var refused: [(UnsafeMutablePointer<iocb>, Int32)]

  /// - Parameters:
  ///   - isSlow: the medium is not memory.
  ///   - depth: operations that can be in flight at once.
  init(descriptor: Int32, isSlow: Bool = true, mailbox: Int32, depth: Int) throws(Errno) {
    let waiter = try EpollWaiter(mailbox: mailbox)
    var context: io_context_t? = nil
    let result = unsafe io_setup(Int32(Self.kernelDepth), &context)
    guard result == 0, let context = unsafe context else { throw Errno(rawValue: -result) }
    let blocks = UnsafeMutablePointer<iocb>.allocate(capacity: depth + 1)
    unsafe blocks.initialize(repeating: iocb(), count: depth + 1)
    // A kernel that cannot poll (before Linux 4.19) is detected here.
    var first: UnsafeMutablePointer<iocb>? = unsafe blocks + depth
    unsafe clinux_aio_prepare_poll(first, waiter.descriptor, Self.pollMark)
    let accepted = unsafe io_submit(context, 1, &first)
    guard accepted == 1 else {
      _ = unsafe io_destroy(context)
      unsafe blocks.deallocate()
      throw Errno(rawValue: accepted < 0 ? -accepted : EIO)
    }
    self.medium = PlainIO(descriptor: descriptor)
    self.waiter = waiter
    unsafe self.context = context
    readsRing = unsafe clinux_aio_ring_is_known(context) != 0
    unsafe self.blocks = blocks
    unsafe self.pollBlock = blocks + depth
    isPolling = true
    unsafe self.freeBlocks = .allocate(capacity: depth)
    for index in 0..<depth { unsafe (freeBlocks + index).initialize(to: UInt32(index)) }
    self.freeCount = depth
    unsafe self.queued = .allocate(capacity: depth + 1)
    unsafe queued.initialize(repeating: nil, count: depth + 1)
    unsafe self.completed = .allocate(capacity: Self.kernelDepth)
    unsafe completed.initialize(repeating: io_event(), count: Self.kernelDepth)
    queuedCount = 0
    parts = BatchParts(isSlow: isSlow)
    completedCount = 0
    nextCompleted = 0
    inKernel = 1
    calls = 1
    unsafe refused = []
  }

  deinit {
    _ = unsafe io_destroy(context)
    unsafe blocks.deallocate()
    unsafe freeBlocks.deallocate()
    unsafe queued.deallocate()
    unsafe completed.deallocate()
  }

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    var opcode: io_iocb_cmd
    var buffer = unsafe UnsafeRawPointer(operation.segments)
    var count = operation.segmentCount
    switch operation.kind {
    case .read, .write:
      let isRead = operation.kind == .read
      if operation.segmentCount == 1, let segment = unsafe operation.segments?.pointee {
        // Saves the kernel from fetching a list with one element.
        opcode = isRead ? IO_CMD_PREAD : IO_CMD_PWRITE
        unsafe buffer = UnsafeRawPointer(segment.base)
        count = Int(truncatingIfNeeded: operation.length)
      } else {
        opcode = isRead ? IO_CMD_PREADV : IO_CMD_PWRITEV
      }
    case .flush: opcode = IO_CMD_FDSYNC
    case .punchHole, .zeroRange, .allocate, .blockDiscard:
      calls &+= 1
      return .finished(medium.changeRange(operation))
    }
    if parts.isDue(queuedCount) { handOver() }
    // One slot of a worker has one operation in flight: there is always a block left.
    precondition(freeCount > 0, "more operations than the engine was made for")
    freeCount &-= 1
    let block = unsafe blocks + Int(freeBlocks[freeCount])
    unsafe clinux_aio_prepare(
      block, Int32(opcode.rawValue), medium.descriptor, buffer, count, Int64(operation.offset),
      operation.isDurable ? clinux_rwf_dsync : 0, UInt64(tag))
    unsafe queued[queuedCount] = block
    queuedCount &+= 1
    return .pending
  }

  mutating func submit() {
    parts.begin()
    handOver()
  }

  private mutating func handOver() {
    var first = 0
    while first < queuedCount {
      calls &+= 1
      let accepted = unsafe io_submit(context, queuedCount - first, queued + first)
      if accepted > 0 {
        first += Int(accepted)
        inKernel += Int(accepted)
      } else if accepted == -EAGAIN && inKernel > (isPolling ? 1 : 0) {
        break  // full: the rest is submitted when something completes
      } else if accepted != -EINTR, let block = unsafe queued[first] {
        // The kernel refused this particular operation: its answer is the request's answer.
        unsafe refused.append((block, accepted == 0 ? -EIO : accepted))
        inKernel += 1
        first += 1
      }
    }
    guard first > 0 else { return }
    for index in first..<queuedCount { unsafe queued[index - first] = queued[index] }
    queuedCount -= first
  }

  mutating func wait(nanoseconds: Int64?) {
    // The poll is submitted with the operations. Anything that happened in the epoll set since it was last checked completes it
    // at once.
    if nanoseconds != 0, !isPolling {
      unsafe queued[queuedCount] = pollBlock
      queuedCount &+= 1
      isPolling = true
    }
    submit()
    // Events that are already here, even from an earlier check, would not wake the thread.
    guard unsafe refused.isEmpty, nextCompleted == completedCount, !hasCompletion, !waiter.hasWake else { return }
    guard nanoseconds != 0 else { return poll() }
    calls &+= 1
    if let nanoseconds {
      var limit = timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
      take(unsafe io_getevents(context, 1, Int(Self.kernelDepth), completed, &limit))
    } else {
      take(unsafe io_getevents(context, 1, Int(Self.kernelDepth), completed, nil))
    }
  }

  /// An armed poll completes in the ring by itself.
  mutating func poll() {
    if !isPolling { waiter.wait(nanoseconds: 0) }
    if !readsRing, inKernel > 0, nextCompleted == completedCount { ask() }
  }

  private var hasCompletion: Bool { unsafe readsRing && clinux_aio_has_event(context) != 0 }

  @inline(__always)
  mutating func nextEvent() -> EngineEvent? {
    var data: UInt64 = 0
    var block: UnsafeMutablePointer<iocb>?
    var result: Int64 = 0
    while readsRing, unsafe clinux_aio_take(context, &data, &block, &result) != 0 {
      if let block = unsafe block, let event = unsafe finish(block, data, result) { return event }
    }
    return otherEvent()
  }

  /// Events that a call returned, operations that io_submit refused, and events of the epoll set.
  @inline(never)
  private mutating func otherEvent() -> EngineEvent? {
    while nextCompleted < completedCount {
      let event = unsafe completed[nextCompleted]
      nextCompleted &+= 1
      let data = unsafe UInt64(UInt(bitPattern: event.data))
      if let event = unsafe finish(event.obj, data, Int64(Int(bitPattern: event.res))) { return event }
    }
    if let (block, result) = unsafe refused.popLast() {
      return unsafe finish(block, UInt64(UInt(bitPattern: block.pointee.data)), Int64(result))
    }
    switch waiter.nextWake() {
    case nil, .completions: return nil
    case .kick(let lane): return .kick(lane: lane)
    case .mailbox: return .mailbox
    }
  }

  private mutating func ask() {
    calls &+= 1
    var none = timespec()
    take(unsafe io_getevents(context, 0, Int(Self.kernelDepth), completed, &none))
  }

  private mutating func take(_ count: Int32) {
    completedCount = max(0, Int(count))
    nextCompleted = 0
  }

  /// - Returns: `nil` for the poll, whose events are in the epoll set.
  @inline(__always)
  private mutating func finish(_ block: UnsafeMutablePointer<iocb>, _ data: UInt64, _ result: Int64) -> EngineEvent? {
    inKernel &-= 1
    if data == Self.pollMark {
      isPolling = false
      waiter.wait(nanoseconds: 0)
      return nil
    }
    unsafe freeBlocks[freeCount] = UInt32(block - blocks)
    freeCount &+= 1
    return .completion(tag: UInt32(truncatingIfNeeded: data), result: Int32(truncatingIfNeeded: result))
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { calls &+ waiter.systemCalls }
}
