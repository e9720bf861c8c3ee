/// One queue as its worker sees it: the ring, the requests under way, and the way of a request from pop to publish.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// When a write has to be on stable storage (virtio 5.2.6.2).
enum Durability {
  /// When it completes: nothing that could commit it later was negotiated.
  case always
  /// At the next FLUSH.
  case byFlush
  /// As the driver set the configuration's `writeback` byte.
  case byConfiguration
}

/// What all lanes of a device have in common.
@safe
struct LaneContext: @unchecked Sendable {
  let limits: BlockLimits
  /// Only for what no engine can do: BLKDISCARD.
  let blockDevice: Int32?
  /// The `writeback` byte of the configuration space; not 0 means writeback.
  let writeback: SharedCell<UInt32>
  /// 20 bytes, NUL padded.
  let serial: UnsafeRawPointer
  /// `zeroChunk` bytes of zeroes.
  let zeroes: UnsafeMutableRawPointer

  static let zeroChunk = 1 << 20
}

@safe
struct Lane<Ring: Virtqueue & ~Copyable>: ~Copyable {
  enum State {
    case running
    /// The ring is broken: nothing more is taken, what is under way is finished.
    case failed
    /// Being stopped.
    case draining
  }

  let queue: Int
  private(set) var state = State.running
  private var ring: Ring
  var slab: RequestSlab
  let context: LaneContext
  private let durability: Durability
  private let isLegacy: Bool
  let hasRanges: (discard: Bool, writeZeroes: Bool)
  let tagBase: UInt32
  private let memory: GuestMemory
  private var call: CallSink
  private var failure: CallSink
  let counters: CounterBlock
  /// What is answered is published after so many even if more is available: a driver that watches goes on while we do.
  private let publishEvery: Int
  private var coalescing: Coalescing?
  /// Slots in the order in which their chains were taken; only with publication in order.
  private var order: OrderQueue?
  private let isOrdered: Bool
  /// What the medium turned out not to do.
  var cannotPunch = false
  var cannotZeroRange = false
  private(set) var error: QueueError?

  /// - Parameter lane: 0 … 65535, the upper half of this lane's tags.
  init(
    _ activation: Activation, lane: Int, slots: Int, context: LaneContext, notification: Notification,
    counters: CounterBlock
  ) throws(QueueError) {
    let features = activation.features
    let ring = try Ring(
      activation.configuration, memory: activation.memory, features: features, position: activation.position)
    let slab: RequestSlab
    do throws(Errno) { slab = try RequestSlab(capacity: min(slots, Int(ring.size))) } catch { throw .outOfMemory }
    self.queue = activation.queue
    self.order = activation.publishesInOrder ? OrderQueue(capacity: slab.capacity) : nil
    self.isOrdered = activation.publishesInOrder
    self.ring = ring
    self.slab = slab
    self.context = context
    self.counters = counters
    self.tagBase = UInt32(lane) << 16
    self.memory = activation.memory
    self.publishEvery = notification == .each ? 1 : 16
    self.coalescing = Coalescing(notification)
    self.call = activation.call
    self.failure = activation.failure
    self.isLegacy = !features.contains(.version1)
    self.hasRanges = (features.contains(.blockDiscard), features.contains(.blockWriteZeroes))
    self.durability =
      features.contains(.blockConfigWCE) ? .byConfiguration : features.contains(.blockFlush) ? .byFlush : .always
  }

  var position: QueuePosition { ring.position }
  var isIdle: Bool { slab.inUse == 0 }
  /// Requests under way in the engine, so that the ring is not all there is to wait for.
  var canTake: Bool { state == .running && slab.inUse < slab.capacity }

  // MARK: Pop

  /// Takes what is available, as far as there are slots, and starts it.
  /// - Returns: whether anything was taken.
  @inline(never)
  mutating func refill<Engine: BlockEngine & ~Copyable>(_ engine: inout Engine) -> Bool {
    guard state == .running, ring.hasAvailable(), var index = slab.take() else { return false }
    // At most one ring full a turn, so that a busy queue leaves its neighbours a turn, too.
    var left = Int(ring.size)
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
      left &-= 1
      guard unsafe !begin(chain, shape, segments, index, &engine) else { continue }
      guard let free = slab.take() else { return true }
      index = free
      unsafe segments = slab.segments(index)
    }
    slab.give(index)
    return true
  }

  /// Asks for kicks before sleeping. - Returns: true when there is something to take after all.
  @inline(__always)
  mutating func prepareToSleep() -> Bool {
    guard canTake else { return false }
    return ring.enableKicks()
  }

  @inline(__always)
  mutating func hasAvailable() -> Bool { canTake && ring.hasAvailable() }

  // MARK: Parse and submit

  /// Reads the header and hands a read or a write to the engine as it is. One that finishes in place is answered at once and
  /// leaves no trace in its slot.
  /// - Returns: whether the slot is free again.
  @inline(__always)
  private mutating func begin<Engine: BlockEngine & ~Copyable>(
    _ chain: consuming Chain, _ shape: ChainShape, _ segments: UnsafeMutablePointer<MemorySegment>, _ index: Int,
    _ engine: inout Engine
  ) -> Bool {
    guard shape.readableBytes >= UInt64(RequestHeader.size) else {
      counters.add(.others)
      return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index)
    }
    let header =
      unsafe segments.pointee.count >= RequestHeader.size
      ? RequestHeader(copying: segments.pointee.base)
      : gatherHeader(segments)

    // What is left of this function is the way of a read or a write.
    var operation: IOOperation
    // Either all that is writable is written, or the data is not and the status byte alone does not count.
    let written: UInt32
    // The last writable byte, wherever the driver cut (virtio 5.2.6).
    let statusByte = unsafe shape.statusByte
    switch header.type {
    case RequestType.read.rawValue:
      let bytes = shape.writableBytes &- 1
      counters.add(.reads)
      counters.add(.bytesRead, bytes)
      guard shape.readableBytes == UInt64(RequestHeader.size), isInside(header.sector, bytes: bytes) else {
        return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index)
      }
      written = Engine.fillsReads ? UInt32(truncatingIfNeeded: shape.writableBytes) : 0
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
        return unsafe refuse(chain, shape.writableBytes, shape.statusByte, index)
      }
      written = 1
      operation = unsafe IOOperation(
        kind: .write, isDurable: isDurable, length: bytes, segments: segments,
        segmentCount: shape.readableCount(from: segments))
      operation.skip(RequestHeader.size)
    default:
      unsafe beginOther(
        header.type, chain, shape.readableBytes, shape.writable, shape.writableBytes, statusByte, index, &engine)
      return false
    }
    operation.offset = header.sector &* 512
    guard operation.length > 0, !operation.isMisaligned(context.limits.memoryMask) else {
      unsafe beginUnusual(chain, shape.writableBytes, statusByte, index, operation, &engine)
      return false
    }
    let outcome = engine.start(operation, tag: tagBase | UInt32(truncatingIfNeeded: index))
    if case .finished(let result) = outcome, UInt64(bitPattern: Int64(result)) == operation.length, !isOrdered {
      unsafe statusByte.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
      push(chain, written: written)
      return true
    }
    // A completion is taken at the next turn at the earliest: what it needs may be written down after the start.
    let slot = unsafe park(chain, shape.writableBytes, statusByte, index)
    unsafe slot.pointee.operation = operation
    if !isOrdered { unsafe slot.pointee.stage = .whole }
    if case .finished(let result) = outcome { settle(index, result, &engine) }
    return false
  }

  /// Writes down what the answer to a request needs.
  @inline(__always)
  private mutating func park(
    _ chain: consuming Chain, _ writableBytes: UInt64, _ statusByte: UnsafeMutableRawPointer, _ index: Int
  ) -> UnsafeMutablePointer<RequestSlot> {
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.chain = consume chain
    unsafe slot.pointee.stage = .transfer
    unsafe slot.pointee.retries = 0
    unsafe slot.pointee.statusByte = statusByte
    unsafe slot.pointee.writableBytes = writableBytes
    unsafe slot.pointee.written = 0
    if isOrdered { order?.append(index) }
    return unsafe slot
  }

  /// A chain without room for a status cannot be answered at all.
  @inline(never)
  private mutating func giveUp(_ chain: consuming Chain) {
    let head = chain.head
    chain.abandon()
    fail(.noWritableByte(head: head))
  }

  /// Answers a request that is malformed. - Returns: false, as its slot went with the answer.
  @inline(never)
  private mutating func refuse(
    _ chain: consuming Chain, _ writableBytes: UInt64, _ statusByte: UnsafeMutableRawPointer, _ index: Int
  ) -> Bool {
    _ = unsafe park(chain, writableBytes, statusByte, index)
    refuse(index, .ioError)
    return false
  }

  /// A read or write of nothing, or one whose buffers the medium cannot take.
  @inline(never)
  private mutating func beginUnusual<Engine: BlockEngine & ~Copyable>(
    _ chain: consuming Chain, _ writableBytes: UInt64, _ statusByte: UnsafeMutableRawPointer, _ index: Int,
    _ operation: IOOperation, _ engine: inout Engine
  ) {
    let slot = unsafe park(chain, writableBytes, statusByte, index)
    unsafe slot.pointee.operation = operation
    guard operation.length > 0 else { return finish(index, .ok) }
    unsafe transferBounced(index, slot, &engine)
  }

  /// Everything but reads and writes.
  @inline(never)
  private mutating func beginOther<Engine: BlockEngine & ~Copyable>(
    _ type: UInt32, _ chain: consuming Chain, _ readableBytes: UInt64, _ writable: UnsafeMutablePointer<MemorySegment>,
    _ writableBytes: UInt64, _ statusByte: UnsafeMutableRawPointer, _ index: Int, _ engine: inout Engine
  ) {
    let slot = unsafe park(chain, writableBytes, statusByte, index)
    switch RequestType(rawValue: type) {
    case .flush: unsafe startFlush(index, slot, &engine)
    case .flushOut where isLegacy: unsafe startFlush(index, slot, &engine)
    case .getID: unsafe answerID(index, writable, bytes: writableBytes &- 1)
    case .discard: unsafe startRanges(index, slot, .discard, readableBytes, &engine)
    case .writeZeroes: unsafe startRanges(index, slot, .zero, readableBytes, &engine)
    case .flushOut, .read, .write, nil:
      counters.add(.others)
      refuse(index, .unsupported)
    }
  }

  /// A header that is spread over several pieces.
  @inline(never)
  private func gatherHeader(_ segments: UnsafeMutablePointer<MemorySegment>) -> RequestHeader {
    unsafe withUnsafeTemporaryAllocation(byteCount: RequestHeader.size, alignment: 8) { copy in
      unsafe Self.gather(segments, skipping: 0, into: copy)
      return unsafe RequestHeader(copying: copy.baseAddress!)
    }
  }

  /// Copies bytes out of the guest's pieces, which hold at least `skipping` and the output's size together.
  static func gather(
    _ segments: UnsafeMutablePointer<MemorySegment>, skipping: Int, into output: UnsafeMutableRawBufferPointer
  ) {
    var skip = skipping
    var copied = 0
    var index = 0
    while copied < output.count {
      let segment = unsafe segments[index]
      index += 1
      guard skip < segment.count else {
        skip -= segment.count
        continue
      }
      let piece = min(segment.count - skip, output.count - copied)
      unsafe output.baseAddress.unsafelyUnwrapped.advanced(by: copied).copyMemory(
        from: segment.base + skip, byteCount: piece)
      copied += piece
      skip = 0
    }
  }

  /// Whole blocks inside the disk; no sum or shift that could overflow comes before its check.
  @inline(__always)
  func isInside(_ sector: UInt64, bytes: UInt64) -> Bool {
    let limits = context.limits
    guard sector <= limits.capacity, (sector &* 512 | bytes) & limits.blockMask == 0 else { return false }
    return bytes / 512 <= limits.capacity &- sector
  }

  var isDurable: Bool {
    @inline(__always) get {
      switch durability {
      case .byFlush: false
      case .always: true
      case .byConfiguration: context.writeback.loadRelaxed() == 0
      }
    }
  }

  @inline(never)
  private mutating func answerID(_ index: Int, _ segments: UnsafeMutablePointer<MemorySegment>, bytes: UInt64) {
    counters.add(.others)
    let count = Int(min(bytes, 20))
    var copied = 0
    var piece = unsafe segments
    while copied < count {
      let part = min(unsafe piece.pointee.count, count - copied)
      unsafe piece.pointee.base.copyMemory(from: context.serial + copied, byteCount: part)
      copied += part
      unsafe piece += 1
    }
    unsafe slab.slot(index).pointee.written = UInt64(count)
    finish(index, .ok)
  }

  // MARK: Publish

  /// Answers a request that failed.
  @inline(never)
  mutating func refuse(_ index: Int, _ status: BlockStatus) {
    counters.add(.failures)
    finish(index, status)
  }

  /// Answers a request that has a slot: its status byte, its used element, its slot.
  @inline(__always)
  mutating func finish(_ index: Int, _ status: BlockStatus) {
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.status = status
    if unsafe slot.pointee.bounce != nil { unsafe slot.pointee.bounce = nil }
    guard isOrdered else { return unsafe answer(index, slot) }
    unsafe finishInOrder(slot)
  }

  @inline(never)
  private mutating func finishInOrder(_ slot: UnsafeMutablePointer<RequestSlot>) {
    unsafe slot.pointee.isFinished = true
    while let first = order?.first, unsafe slab.slot(first).pointee.isFinished {
      order?.removeFirst()
      unsafe slab.slot(first).pointee.isFinished = false
      unsafe answer(first, slab.slot(first))
    }
  }

  @inline(__always)
  private mutating func answer(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) {
    guard let chain = unsafe slot.pointee.chain.take() else {
      preconditionFailure("a request was answered twice")
    }
    unsafe slot.pointee.statusByte?.storeBytes(of: slot.pointee.status.rawValue, as: UInt8.self)
    // The status byte comes last: it counts only when everything before it was written, too (virtio 2.6.8.2).
    let written = unsafe slot.pointee.written
    let all = unsafe slot.pointee.writableBytes
    push(chain, written: UInt32(truncatingIfNeeded: min(written &+ 1 == all ? all : written, UInt64(UInt32.max))))
    slab.give(index)
  }

  /// Answers a transfer that went well at the first attempt.
  @inline(__always)
  mutating func answerWhole(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, isFilled: Bool) {
    guard let chain = unsafe slot.pointee.chain.take() else {
      preconditionFailure("a request was answered twice")
    }
    unsafe slot.pointee.statusByte?.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
    push(chain, written: isFilled ? unsafe UInt32(truncatingIfNeeded: slot.pointee.writableBytes) : 0)
    slab.give(index)
  }

  @inline(__always)
  private mutating func push(_ chain: consuming Chain, written: UInt32) {
    ring.push(chain, written: written)
    if ring.unpublished >= publishEvery { publishEarly() }
  }

  /// Before the turn is over.
  @inline(never)
  private mutating func publishEarly() { publish() }

  /// Shows the driver what was answered, and tells it if it wants to be told.
  @inline(__always)
  mutating func publish() {
    let count = ring.unpublished
    ring.publish()
    if coalescing != nil, !coalescing!.isDue(after: count) { return }
    guard ring.needsCall() else { return }
    counters.add(.calls)
    call.signal()
  }

  /// The last publication of a lane that is stopped: a call that is being held back is due now.
  mutating func publishLast() {
    coalescing = nil
    publish()
  }

  /// When a call that is being held back is due; `Clock` nanoseconds.
  var callDeadline: UInt64? { coalescing?.deadline }

  // MARK: Control

  mutating func drain() { state = .draining }

  mutating func replaceCall(_ call: CallSink) {
    self.call = call
    // Something may have been published while the old one was no longer listened to.
    call.signal()
  }

  /// Stops the queue when its memory is not the driver's any more.
  mutating func checkMemory() { if memory.hasFaulted { fail(.memoryLost) } }

  mutating func replaceFailure(_ failure: CallSink) { self.failure = failure }

  @inline(never)
  private mutating func fail(_ error: QueueError) {
    guard state == .running else { return }
    state = .failed
    self.error = error
    failure.signal()
  }

  /// The error of a lane that failed, once.
  mutating func takeError() -> QueueError? {
    let taken = error
    error = nil
    return taken
  }
}
