/// One queue as its worker sees it: the ring, the requests in flight, and the path of a request from pop to publish.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct Lane<Ring: Virtqueue & ~Copyable>: ~Copyable {
  enum State {
    case running
    /// Completely set up, but nothing is popped before the release.
    case held
    /// Requests that a previous run left in flight are executed again; nothing else is popped before that is done.
    case recovering
    /// The medium failed a request, or the disk is paused: nothing more is popped until the operator resumes the disk.
    case stalled
    /// Nothing more is popped until a translation comes, or until requests that use withdrawn translations have ended.
    case waiting
    /// The ring is broken: nothing more is popped, and what is in flight is completed.
    case failed
    /// Being stopped.
    case draining
  }

  let queue: Int
  var state: State
  var ring: Ring
  var slab: RequestSlab
  let context: LaneContext
  let rules: LaneRules
  let firstTag: UInt32
  let memory: GuestMemory
  /// Where the ring records what is in flight.
  let inflight: InflightMemory?
  var call: CallSink
  var failure: CallSink
  let counters: CounterBlock
  /// Answers are published in batches of this size even if more is available, so that a driver that polls can continue
  /// meanwhile.
  let publishEvery: Int
  /// The ring publishes each answer at once. For a packed ring without records, in which the later answers of a batch would lie
  /// over descriptors before the first one is shown if the process died.
  let publishesAtPush: Bool
  var coalescing: Coalescing?
  /// Which answer is due next; used only with publication in order.
  var order: AnswerOrder
  let isOrdered: Bool
  /// The driver knows about the order (IN_ORDER).
  let isInOrder: Bool
  /// An answer is more than a status byte and a used element: the driver relies on the order, or there is a dirty log.
  let isWatched: Bool
  /// The stage of a transfer in flight.
  let transferStage: RequestStage
  /// An answer is only a status byte and a used element, whatever was popped before.
  let isPlain: Bool
  /// Logs what was written to guest memory.
  var log: LaneLog?
  var error: QueueError?
  /// Requests that failed while a failure stalls the queue, and the state before the stall.
  var parked: [Int] = []
  var stateBeforeStall = State.running
  /// For a driver behind an IOMMU: the state after the wait, whether translations are being withdrawn, and the value of
  /// `Translations.losses` when nothing older was in flight.
  var stateBeforeWait = State.running
  var isWithdrawing = false
  /// Requests were started without waiting for a limit because translations were withdrawn: nothing more is popped before this
  /// moment, when that is paid; 0: nothing is owed.
  var creditEnds: UInt64 = 0
  var seenLosses: UInt64
  /// The last turn ended because it reached its limit, not because the ring was empty.
  var hadItsTurn = false
  /// To be stopped as soon as the interrupted requests have been popped again.
  var stopsAfterRecovery = false

  /// Transfers up to this size are submitted at once; 0 if the disk has limits: then each is checked first.
  var plainBytes: UInt64
  var isLimited = false
  /// Each transfer is checked before it is submitted: the disk has limits or zones.
  var looksFirst: Bool
  /// The same for other requests: the disk is traced, or has zones.
  var looksAtOthers: Bool
  /// Requests that wait for a limit.
  var throttled = LaneThrottle()
  /// Records how long requests took; `nil`: they are not timed.
  let meter: LaneMeter?
  /// Whether answers that are not plain are counted or recorded one by one.
  var looksAtAnswers: Bool
  /// The trace that is being recorded; `nil`: none.
  var trace: LaneTrace?
  /// Where the number of requests in flight is stored for metrics.
  let depth: SharedCell<UInt64>?
  /// The arrival time of everything that is popped in this turn.
  var arrival: ArrivalWord
  var account: LaneAccount

  /// How many of the chains popped last are handed back for the queue's next start.
  var handedBack: UInt16 = 0

  /// Slots and heads of requests to zones whose answers may not be published yet.
  var zoneAnswers: [(index: Int, head: UInt16)] = []

  /// The process's count of lost pages when this queue's memory was last found to be intact.
  var seenFaults = UInt64.max
  /// The same, if publishing needs no further check; `max` if it always does.
  var plainFaults = UInt64.max
  /// The same as `seenFaults`, if writes need no further check; `max` if they do.
  var writesAreClear = UInt64.max

  /// The position of the ring, without what was handed back.
  var position: QueuePosition { ring.position(handingBack: handedBack) }
  /// Nothing is in flight except what will be handed back, and no interrupted requests are left.
  var isIdle: Bool { state != .recovering && (slab.inUse == 0 || holdsOnlyBack) }
  /// Stores the number of requests in flight.
  func showDepth() { depth?.storeRelaxed(UInt64(truncatingIfNeeded: slab.inUse)) }
  /// Whether a request that becomes available now can be popped.
  var canTake: Bool { state == .running && slab.inUse < slab.capacity }

  // MARK: Pop

  /// Pops and starts what is available, until there is no slot or the turn reaches its limit.
  /// - Returns: whether anything was popped.
  @inline(never)
  mutating func refill<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) -> Bool {
    hadItsTurn = false
    guard state == .running else { return resume(&medium) }
    guard ring.hasAvailable(), var index = slab.take() else { return false }
    // Check again whether the file was truncated.
    if medium.canBeCut { writesAreClear = .max }
    var left = Medium<Engine>.turnBytes
    // One slot serves all requests that finish in place.
    var segments = unsafe slab.segments(index)
    var shape = unsafe ChainShape(at: segments)
    while left > 0 {
      let popped: Chain?
      do throws(QueueError) {
        popped = unsafe try ring.pop(into: segments, capacity: RequestSlab.segmentsPerSlot, shape: &shape)
      } catch {
        fail(error)
        break
      }
      guard let chain = consume popped else { break }
      guard unsafe shape.writable != shape.end else {
        giveUp(chain)
        break
      }
      guard unsafe !parse(chain, shape, segments, index, &left, &medium) else { continue }
      // A queue that stalls pops nothing more, not even the rest of this batch.
      guard state != .stalled, let free = slab.take() else { return true }
      index = free
      unsafe segments = slab.segments(index)
    }
    hadItsTurn = left <= 0
    slab.give(index)
    return true
  }

  /// Enables kicks before sleeping. - Returns: true if there is something to pop after all.
  @inline(__always)
  mutating func prepareToSleep() -> Bool {
    guard canTake else { return hasInterrupted }
    let hasMore = ring.enableKicks()
    if log != nil { logRing() }
    return hasMore
  }

  @inline(__always)
  mutating func hasAvailable() -> Bool { canTake ? ring.hasAvailable() : hasInterrupted }

  /// There are interrupted requests, and there is a slot for one.
  private var hasInterrupted: Bool {
    @inline(__always) get { Ring.isRecorded && state == .recovering && slab.inUse < slab.capacity }
  }

  // MARK: Parse and submit

  /// Reads the header and submits a read or a write. One that completes in place is answered at once and leaves nothing in its
  /// slot.
  /// - Returns: whether the slot is free again.
  @inline(__always)
  mutating func parse<Engine: BlockEngine & ~Copyable>(
    _ chain: consuming Chain, _ shape: ChainShape, _ segments: UnsafeMutablePointer<MemorySegment>, _ index: Int,
    _ left: inout Int, _ medium: inout Medium<Engine>
  ) -> Bool {
    guard shape.readableBytes >= UInt64(RequestHeader.size) else {
      left &-= BlockLimits.requestCost
      counters.add(.others)
      return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index, .unknown)
    }
    let header =
      unsafe segments.pointee.count >= RequestHeader.size
      ? RequestHeader(copying: segments.pointee.base)
      : gatherHeader(segments)

    // The rest of this function is the path of a read or a write.
    var operation: IOOperation
    // Either everything writable is written, or only the status byte, which counts only if it is the first writable byte.
    let written: UInt32
    // The last writable byte, wherever the descriptors' boundaries are (virtio 5.2.6).
    let statusByte = unsafe shape.statusByte
    switch header.type {
    case RequestType.read.rawValue:
      let bytes = shape.writableBytes &- 1
      counters.add(.reads)
      counters.add(.bytesRead, bytes)
      guard shape.readableBytes == UInt64(RequestHeader.size), isInside(header.sector, bytes: bytes) else {
        left &-= BlockLimits.requestCost
        return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index, .read)
      }
      written = Engine.movesData ? UInt32(truncatingIfNeeded: shape.writableBytes) : 0
      let last = unsafe shape.end - 1
      unsafe last.pointee.count &-= 1
      operation = unsafe IOOperation(
        kind: .read, length: bytes, segments: shape.writable,
        segmentCount: shape.writableCount &- (last.pointee.count == 0 ? 1 : 0))
    case RequestType.write.rawValue:
      let bytes = shape.readableBytes &- UInt64(RequestHeader.size)
      counters.add(.writes)
      counters.add(.bytesWritten, bytes)
      guard shape.writableBytes == 1, !context.limits.isReadOnly, isInside(header.sector, bytes: bytes) else {
        left &-= BlockLimits.requestCost
        return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index, .write)
      }
      if Engine.movesData, context.faults.loadRelaxed() != writesAreClear {
        guard mayWrite(before: header.sector &* 512 &+ bytes, &medium) else {
          left &-= BlockLimits.requestCost
          return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index, .write)
        }
      }
      written = 1
      operation = unsafe IOOperation(
        kind: .write, length: bytes, segments: segments, segmentCount: shape.readableCount(from: segments))
      operation.skip(RequestHeader.size)
      // An engine without a medium has nothing to make stable.
      if Engine.movesData, isDurable {
        operation.offset = header.sector &* 512
        left &-= Int(truncatingIfNeeded: bytes) &+ BlockLimits.requestCost
        unsafe keep(chain, statusByte, written, index, .write)
        return writeDurably(operation, index, &medium)
      }
    default:
      left &-= BlockLimits.requestCost
      unsafe keep(chain, statusByte, UInt32(truncatingIfNeeded: shape.writableBytes), index)
      unsafe parseOther(header.type, shape.readableBytes, shape.writable, index, &medium)
      if state == .stalled { left = 0 }
      return false
    }
    operation.offset = header.sector &* 512
    left &-= Int(truncatingIfNeeded: operation.length) &+ BlockLimits.requestCost
    guard operation.length &- 1 < plainBytes,
      operation.segmentCount == 1 || operation.segmentCount <= rules.segments
    else {
      unsafe keep(chain, statusByte, written, index, ArrivalKind(operation.kind))
      medium.prepare(operation, tag: tag(index))
      askUnusual(index, &medium)
      if state == .stalled { left = 0 }
      return false
    }
    // A completion is handled in the next turn at the earliest: what it needs may be stored after the request was submitted.
    switch medium.transfer(operation, tag: firstTag | UInt32(truncatingIfNeeded: index)) {
    case .pending:
      unsafe keep(chain, statusByte, written, index, ArrivalKind(operation.kind))
      if Engine.finishesInPlace, operation.kind == .write { account.keptWrites &+= 1 }
      return false
    case .failed: return unsafe completeInPlace(chain, statusByte, written, index, isDone: false, &medium)
    case .done: break
    }
    guard isPlain || order.isClear else {
      return unsafe completeInPlace(chain, statusByte, written, index, isDone: true, &medium)
    }
    unsafe statusByte.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
    push(chain, written: written)
    return true
  }

  /// Answers a request that completed at once, but not on the fast path.
  /// - Returns: whether the slot is free again; otherwise it was, or will be, released with the answer.
  @inline(never)
  private mutating func completeInPlace<Engine: BlockEngine & ~Copyable>(
    _ chain: consuming Chain, _ statusByte: UnsafeMutableRawPointer, _ written: UInt32, _ index: Int, isDone: Bool,
    _ medium: inout Medium<Engine>
  ) -> Bool {
    if isDone, order.isEmpty {
      unsafe answerInPlace(chain, statusByte, written, index)
      return true
    }
    // A read has written more than its status, except without a medium.
    let isWrite = written == 1
    if isWrite { account.keptWrites &+= 1 }
    unsafe keep(chain, statusByte, written, index, isWrite ? .write : .read)
    complete(index, isDone: isDone, &medium)
    return false
  }

  /// Stores what the answer to a request needs.
  ///
  /// - Parameter written: the used element's length if a transfer completes; for other requests, all writable bytes.
  @inline(__always)
  mutating func keep(
    _ chain: consuming Chain, _ statusByte: UnsafeMutableRawPointer, _ written: UInt32, _ index: Int, _ kind: ArrivalKind
  ) {
    unsafe keep(chain, statusByte, written, index)
    note(kind, index)
  }

  /// Records when a request arrived, and its kind.
  @inline(__always)
  mutating func note(_ kind: ArrivalKind, _ index: Int) { unsafe slab.slot(index).pointee.arrival = arrival.with(kind) }

  /// The same for a request whose kind is noted later.
  @inline(__always)
  private mutating func keep(
    _ chain: consuming Chain, _ statusByte: UnsafeMutableRawPointer, _ written: UInt32, _ index: Int
  ) {
    slab.keep(chain, at: index, transferStage)
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.statusByte = statusByte
    unsafe slot.pointee.written = written
    if isOrdered { unsafe slot.pointee.number = order.takeNumber() }
  }

  /// Whole blocks inside the disk; no sum or shift is computed before the check that it cannot overflow.
  @inline(__always)
  func isInside(_ sector: UInt64, bytes: UInt64) -> Bool {
    let capacity = context.capacity.loadAcquire()
    guard sector <= capacity, (sector &* 512 | bytes) & context.limits.blockMask == 0 else { return false }
    return bytes / 512 <= capacity &- sector
  }

  var isDurable: Bool {
    @inline(__always) get {
      switch rules.durability {
      case .byFlush: false
      case .always: true
      case .byConfiguration: context.writeback.loadRelaxed() == 0
      }
    }
  }

  func tag(_ index: Int) -> UInt32 { firstTag | UInt32(truncatingIfNeeded: index) }

  // MARK: Complete

  /// The medium has completed an operation of a request.
  @inline(__always)
  mutating func complete<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    guard isPlain else { return completeInOrder(index, &medium) }
    let slot = unsafe slab.slot(index)
    guard unsafe account.answers.extendPlain(slot.pointee.arrival) else { return complete(index, isDone: true, &medium) }
    let written = unsafe slot.pointee.written
    unsafe slot.pointee.statusByte.unsafelyUnwrapped.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
    push(slab.takeChain(at: index), written: written)
    slab.give(index)
  }

  /// The same for everything except a plain transfer that arrived with the previous one.
  @inline(never)
  mutating func complete<Engine: BlockEngine & ~Copyable>(_ index: Int, isDone: Bool, _ medium: inout Medium<Engine>) {
    guard trace == nil else { return completeTraced(index, isDone: isDone, &medium) }
    completeUnusual(index, isDone: isDone, &medium)
  }

  // MARK: Publish

  @inline(__always)
  mutating func push(_ chain: consuming Chain, written: UInt32) {
    guard !pushesWithCare else { return pushWithCare(chain, written: written, isWhole: true) }
    ring.push(chain, written: written)
    KillPoint.pass(.answerPushed)
    if ring.unpublished >= publishEvery { publishEarly() }
  }

  /// A push shows the answer to the driver, so the memory has to be checked before it.
  var pushesWithCare: Bool {
    @inline(__always) get {
      Ring.canPublishAtPush && publishesAtPush && context.faults.loadAfterLoads() != plainFaults
    }
  }

  /// Publishes before the turn ends.
  @inline(never)
  mutating func publishEarly() { publish() }

  /// Publishes the answers, and notifies the driver if it wants to be notified.
  @inline(__always)
  mutating func publish() {
    // A request that was read from lost memory must never be published as done.
    guard context.faults.loadAfterLoads() == plainFaults else { return publishWithCare() }
    let count = ring.unpublished
    ring.publish()
    tell(count)
  }

  /// Notifies the driver, if it wants to be notified.
  ///
  /// - Parameter count: chains that were published just now.
  @inline(__always)
  mutating func tell(_ count: Int) {
    if coalescing != nil, !coalescing!.isDue(after: count) { return }
    guard ring.needsCall() else { return }
    counters.add(.calls)
    KillPoint.pass(.callDue)
    call.signal()
    KillPoint.pass(.callDone)
  }
}
