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
  private var unpublished = 0
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
  @inline(__always)
  mutating func refill<Engine: BlockEngine & ~Copyable>(_ engine: inout Engine) -> Bool {
    guard state == .running else { return false }
    var taken = 0
    // At most one ring full a turn, so that a busy queue leaves its neighbours a turn, too.
    let most = Int(ring.size)
    while taken < most, let index = slab.take() {
      let popped: Chain?
      do throws(QueueError) {
        popped = unsafe try ring.pop(into: slab.segments(index), capacity: RequestSlab.segmentsPerSlot)
      } catch {
        slab.give(index)
        fail(error)
        break
      }
      guard let chain = consume popped else {
        slab.give(index)
        break
      }
      if taken == 0 { ring.suppressKicks() }
      taken &+= 1
      begin(chain, index, &engine)
    }
    return taken > 0
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

  @inline(__always)
  private mutating func begin<Engine: BlockEngine & ~Copyable>(
    _ chain: consuming Chain, _ index: Int, _ engine: inout Engine
  ) {
    guard unsafe chain.lastWritable != nil else {
      let head = chain.head
      chain.abandon()
      slab.give(index)
      fail(.noWritableByte(head: head))
      return
    }
    let segments = unsafe slab.segments(index)
    let slot = unsafe slab.slot(index)
    let readableCount = Int(chain.readableCount)
    let writableCount = Int(chain.writableCount)
    let readableBytes = chain.readableBytes
    let writableBytes = chain.writableBytes
    let isSound = chain.defect == nil && readableBytes >= UInt64(RequestHeader.size)
    unsafe slot.pointee.chain = consume chain
    unsafe slot.pointee.written = 0
    unsafe slot.pointee.retries = 0
    if isOrdered { order?.append(index) }
    guard isSound else {
      counters.add(.others)
      return refuse(index, .ioError)
    }

    let header =
      unsafe segments.pointee.count >= RequestHeader.size
      ? RequestHeader(copying: segments.pointee.base)
      : gatherHeader(segments)

    // What is left of this function is the way of a read or a write.
    let bytes: UInt64
    switch header.type {
    case RequestType.read.rawValue:
      bytes = writableBytes &- 1
      counters.add(.reads)
      counters.add(.bytesRead, bytes)
      guard readableBytes == UInt64(RequestHeader.size), isInside(header.sector, bytes: bytes) else {
        return refuse(index, .ioError)
      }
      // The status byte is the last writable one, wherever the driver cut (virtio 5.2.6).
      let last = unsafe segments + (readableCount &+ writableCount &- 1)
      unsafe last.pointee.count &-= 1
      unsafe slot.pointee.segments = segments + readableCount
      unsafe slot.pointee.segmentCount = last.pointee.count == 0 ? writableCount &- 1 : writableCount
      unsafe slot.pointee.isRead = true
      unsafe slot.pointee.isDurable = false
    case RequestType.write.rawValue:
      bytes = readableBytes &- UInt64(RequestHeader.size)
      counters.add(.writes)
      counters.add(.bytesWritten, bytes)
      guard writableBytes == 1, !context.limits.isReadOnly, isInside(header.sector, bytes: bytes) else {
        return refuse(index, .ioError)
      }
      unsafe slot.pointee.segments = segments
      unsafe slot.pointee.segmentCount = readableCount
      unsafe slot.pointee.skip(RequestHeader.size)
      unsafe slot.pointee.isRead = false
      unsafe slot.pointee.isDurable = isDurable
    default:
      return unsafe beginOther(
        header.type, index, slot, readableBytes: readableBytes, answer: segments + readableCount,
        answerBytes: writableBytes &- 1, &engine)
    }
    guard bytes > 0 else { return finish(index, .ok) }
    unsafe slot.pointee.stage = .transfer
    unsafe slot.pointee.offset = header.sector &* 512
    unsafe slot.pointee.remaining = bytes
    unsafe transfer(index, slot, &engine)
  }

  /// Everything but reads and writes.
  @inline(never)
  private mutating func beginOther<Engine: BlockEngine & ~Copyable>(
    _ type: UInt32, _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, readableBytes: UInt64,
    answer: UnsafeMutablePointer<MemorySegment>, answerBytes: UInt64, _ engine: inout Engine
  ) {
    switch RequestType(rawValue: type) {
    case .flush: unsafe startFlush(index, slot, &engine)
    case .flushOut where isLegacy: unsafe startFlush(index, slot, &engine)
    case .getID: unsafe answerID(index, answer, bytes: answerBytes)
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

  /// Answers a request: its status byte, its used element, its slot.
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
    unsafe chain.lastWritable?.storeBytes(of: slot.pointee.status.rawValue, as: UInt8.self)
    // The status byte comes last: it counts only when everything before it was written, too (virtio 2.6.8.2).
    let written = unsafe slot.pointee.written
    let length = written &+ 1 == chain.writableBytes ? chain.writableBytes : written
    ring.push(chain, written: UInt32(truncatingIfNeeded: min(length, UInt64(UInt32.max))))
    slab.give(index)
    unpublished &+= 1
    if unpublished >= publishEvery { publish() }
  }

  /// Shows the driver what was answered, and tells it if it wants to be told.
  @inline(__always)
  mutating func publish() {
    ring.publish()
    if coalescing != nil, !coalescing!.isDue(after: unpublished) {
      unpublished = 0
      return
    }
    unpublished = 0
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
