/// Linux's older asynchronous interface, through libaio: for where io_uring is forbidden. Asynchronous only with O_DIRECT on a
/// real disk; elsewhere the kernel does the work inside io_submit.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct AioEngine: BlockEngine, ~Copyable {
  static let fillsReads = true
  /// Operations in the kernel at once. All processes of a machine share 65536 by default.
  private static let kernelDepth = 256

  private let medium: PlainIO
  private var waiter: EpollWaiter
  private let completionCounter: OwnedDescriptor
  private let context: io_context_t
  /// One control block for each operation that can be under way, and which of them are free.
  private let blocks: UnsafeMutablePointer<iocb>
  private let freeBlocks: UnsafeMutablePointer<UInt32>
  private var freeCount: Int
  /// Started and not yet in the kernel, first in first out.
  private let queued: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>
  private var queuedCount: Int
  private let completed: UnsafeMutablePointer<io_event>
  private var completedCount: Int
  private var nextCompleted: Int
  private var inKernel: Int
  private var calls: UInt64
  /// Operations that io_submit itself refused; empty but for broken media.
  private var refused: [(UnsafeMutablePointer<iocb>, Int32)]

  /// - Parameter depth: operations that can be under way at once.
  init(descriptor: Int32, mailbox: Int32, depth: Int) throws(Errno) {
    let counter = try OwnedDescriptor.eventCounter()
    let waiter = try EpollWaiter(mailbox: mailbox, completions: counter.rawValue)
    var context: io_context_t? = nil
    let result = unsafe io_setup(Int32(Self.kernelDepth), &context)
    guard result == 0, let context = unsafe context else { throw Errno(rawValue: -result) }
    self.medium = PlainIO(descriptor: descriptor)
    self.waiter = waiter
    self.completionCounter = counter
    unsafe self.context = context
    unsafe self.blocks = .allocate(capacity: depth)
    unsafe blocks.initialize(repeating: iocb(), count: depth)
    unsafe self.freeBlocks = .allocate(capacity: depth)
    for index in 0..<depth { unsafe (freeBlocks + index).initialize(to: UInt32(index)) }
    self.freeCount = depth
    unsafe self.queued = .allocate(capacity: depth)
    unsafe queued.initialize(repeating: nil, count: depth)
    unsafe self.completed = .allocate(capacity: Self.kernelDepth)
    unsafe completed.initialize(repeating: io_event(), count: Self.kernelDepth)
    queuedCount = 0
    completedCount = 0
    nextCompleted = 0
    inKernel = 0
    calls = 0
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
    let opcode: UInt32
    switch operation.kind {
    case .read: opcode = IO_CMD_PREADV.rawValue
    case .write: opcode = IO_CMD_PWRITEV.rawValue
    case .flush: opcode = IO_CMD_FDSYNC.rawValue
    case .punchHole, .zeroRange, .allocate:
      calls &+= 1
      return .finished(medium.allocate(operation))
    }
    // One slot of a worker has one operation under way: there is always a block left.
    precondition(freeCount > 0, "more operations than the engine was made for")
    freeCount &-= 1
    let block = unsafe blocks + Int(freeBlocks[freeCount])
    unsafe clinux_aio_prepare(
      block, Int32(opcode), medium.descriptor, operation.segments, operation.segmentCount, Int64(operation.offset),
      operation.isDurable ? clinux_rwf_dsync : 0, completionCounter.rawValue, UInt64(tag))
    unsafe queued[queuedCount] = block
    queuedCount &+= 1
    return .pending
  }

  mutating func submit() {
    var first = 0
    while first < queuedCount {
      calls &+= 1
      let accepted = unsafe io_submit(context, queuedCount - first, queued + first)
      if accepted > 0 {
        first += Int(accepted)
        inKernel += Int(accepted)
      } else if accepted == -EAGAIN && inKernel > 0 {
        break  // full: the rest goes when something completes
      } else if accepted != -EINTR, let block = unsafe queued[first] {
        // The kernel refused this very operation: its answer is the request's answer.
        unsafe refused.append((block, accepted == 0 ? -EIO : accepted))
        first += 1
      }
    }
    guard first > 0 else { return }
    for index in first..<queuedCount { unsafe queued[index - first] = queued[index] }
    queuedCount -= first
  }

  mutating func wait(nanoseconds: Int64?) {
    submit()
    if unsafe refused.isEmpty && nextCompleted == completedCount { waiter.wait(nanoseconds: nanoseconds) }
  }

  mutating func poll() { waiter.wait(nanoseconds: 0) }

  mutating func nextEvent() -> EngineEvent? {
    if nextCompleted == completedCount, inKernel > 0 { collect() }
    if nextCompleted < completedCount {
      let event = unsafe completed[nextCompleted]
      nextCompleted &+= 1
      return unsafe finish(event.obj, Int32(truncatingIfNeeded: Int(bitPattern: event.res)))
    }
    if let (block, result) = unsafe refused.popLast() { return unsafe finish(block, result) }
    while let wake = waiter.nextWake() {
      switch wake {
      case .completions: continue  // already collected, or there at the next call; an edge needs no reading back
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox: return .mailbox
      }
    }
    return nil
  }

  private mutating func collect() {
    calls &+= 1
    var none = timespec()
    let count = unsafe io_getevents(context, 0, Int(Self.kernelDepth), completed, &none)
    completedCount = max(0, Int(count))
    nextCompleted = 0
    inKernel -= completedCount
  }

  private mutating func finish(_ block: UnsafeMutablePointer<iocb>, _ result: Int32) -> EngineEvent {
    unsafe freeBlocks[freeCount] = UInt32(block - blocks)
    freeCount &+= 1
    return .completion(tag: unsafe UInt32(UInt(bitPattern: block.pointee.data)), result: result)
  }

  mutating func watch(_ kick: KickSource, lane: Int) { waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { calls &+ waiter.systemCalls }
}
