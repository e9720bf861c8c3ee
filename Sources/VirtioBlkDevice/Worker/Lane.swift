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
  private var slab: RequestSlab
  private let context: LaneContext
  private let durability: Durability
  private let isLegacy: Bool
  private let hasRanges: (discard: Bool, writeZeroes: Bool)
  private let tagBase: UInt32
  private var call: CallSink
  private var failure: CallSink
  private let counters: CounterBlock
  /// What is answered is published after so many even if more is available: a driver that watches goes on while we do.
  private let publishEvery: Int
  private var unpublished = 0
  private var coalescing: Coalescing?
  /// Slots in the order in which their chains were taken; only with publication in order.
  private var order: OrderQueue?
  private let isOrdered: Bool
  /// What the medium turned out not to do.
  private var cannotPunch = false
  private var cannotZeroRange = false
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
  private static func gather(
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
  private func isInside(_ sector: UInt64, bytes: UInt64) -> Bool {
    let limits = context.limits
    guard sector <= limits.capacity, (sector &* 512 | bytes) & limits.blockMask == 0 else { return false }
    return bytes / 512 <= limits.capacity &- sector
  }

  private var isDurable: Bool {
    @inline(__always) get {
      switch durability {
      case .byFlush: false
      case .always: true
      case .byConfiguration: context.writeback.loadRelaxed() == 0
      }
    }
  }

  private mutating func startFlush<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    counters.add(.flushes)
    // There is nothing of ours to commit on a disk that is only read.
    guard !context.limits.isReadOnly else { return finish(index, .ok) }
    unsafe flush(index, slot, &engine)
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

  /// DISCARD and WRITE_ZEROES: the ranges are copied once and checked as a whole before the first one is touched.
  @inline(never)
  private mutating func startRanges<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ stage: RequestStage, _ readableBytes: UInt64,
    _ engine: inout Engine
  ) {
    let isDiscard = stage == .discard
    counters.add(isDiscard ? .discards : .writeZeroes)
    guard !context.limits.isReadOnly else { return refuse(index, .ioError) }
    guard isDiscard ? hasRanges.discard : hasRanges.writeZeroes else { return refuse(index, .unsupported) }
    let bytes = readableBytes &- UInt64(RequestHeader.size)
    let count = bytes / UInt64(RequestRange.size)
    guard bytes % UInt64(RequestRange.size) == 0, count > 0, count <= UInt64(BlockLimits.ranges) else {
      return refuse(index, .ioError)
    }
    let ranges = unsafe slab.ranges(index)
    unsafe Self.gather(
      slab.segments(index), skipping: RequestHeader.size,
      into: UnsafeMutableRawBufferPointer(start: ranges, count: Int(bytes)))
    // Flags first: an unknown one says UNSUPP whatever the range (virtio 5.2.6.2).
    for number in 0..<Int(count) {
      let flags = unsafe ranges[number].flags
      guard flags & ~RequestRange.unmap == 0, !isDiscard || flags == 0 else { return refuse(index, .unsupported) }
    }
    for number in 0..<Int(count) {
      let range = unsafe ranges[number]
      guard range.sectorCount <= BlockLimits.rangeSectors,
        isInside(range.sector, bytes: UInt64(range.sectorCount) &* 512)
      else { return refuse(index, .ioError) }
    }
    unsafe slot.pointee.stage = stage
    unsafe slot.pointee.isDurable = isDurable
    unsafe slot.pointee.rangeIndex = 0
    unsafe slot.pointee.rangeCount = UInt8(count)
    if !isDiscard { unsafe beginZeroing(index, slot) }
    unsafe step(index, slot, &engine)
  }

  // MARK: Complete

  /// An operation of a request is done: take the request further, or answer it.
  @inline(__always)
  mutating func complete<Engine: BlockEngine & ~Copyable>(_ index: Int, _ result: Int32, _ engine: inout Engine) {
    let slot = unsafe slab.slot(index)
    if unsafe slot.pointee.stage == .transfer {
      if unsafe absorb(index, slot, result, Engine.fillsReads) { unsafe transfer(index, slot, &engine) }
    } else if unsafe advance(index, slot, result) {
      unsafe step(index, slot, &engine)
    }
  }

  @inline(__always)
  private mutating func transfer<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    while true {
      // A request that began with a copy ends with it, even when only aligned pieces are left: its results are the copy's.
      if context.limits.memoryMask != 0,
        unsafe slot.pointee.bounce != nil || slot.pointee.isMisaligned(context.limits.memoryMask)
      {
        return unsafe transferBounced(index, slot, &engine)
      }
      let operation = unsafe IOOperation(
        kind: slot.pointee.isRead ? .read : .write, isDurable: slot.pointee.isDurable, offset: slot.pointee.offset,
        length: slot.pointee.remaining, segments: slot.pointee.segments, segmentCount: slot.pointee.segmentCount)
      switch engine.start(operation, tag: tagBase | UInt32(truncatingIfNeeded: index)) {
      case .pending: return
      case .finished(let result):
        guard unsafe absorb(index, slot, result, Engine.fillsReads) else { return }
      }
    }
  }

  /// Accounts for a transfer's result. - Returns: true when more is to be transferred.
  @inline(__always)
  private mutating func absorb(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ result: Int32, _ fillsReads: Bool
  ) -> Bool {
    if unsafe UInt64(bitPattern: Int64(result)) == slot.pointee.remaining, unsafe slot.pointee.bounce == nil {
      if unsafe fillsReads && slot.pointee.isRead { unsafe slot.pointee.written &+= slot.pointee.remaining }
      finish(index, .ok)
      return false
    }
    return unsafe absorbPart(index, slot, result, fillsReads)
  }

  /// Everything but a whole transfer: short ones, interrupted ones, the end of the file, errors, copies.
  @inline(never)
  private mutating func absorbPart(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ result: Int32, _ fillsReads: Bool
  ) -> Bool {
    if result < 0 {
      if result == -EINTR || result == -EAGAIN, unsafe slot.pointee.retry() { return true }
      refuse(index, .ioError)
      return false
    }
    let isRead = unsafe slot.pointee.isRead
    var count = Int(result)
    if isRead {
      if unsafe slot.pointee.bounce != nil { unsafe slot.pointee.bounce?.empty(into: slot.pointee.segments, count: count) }
      unsafe slot.pointee.skip(count)
      unsafe slot.pointee.remaining &-= UInt64(count)
      unsafe slot.pointee.offset &+= UInt64(count)
      if fillsReads { unsafe slot.pointee.written &+= UInt64(count) }
      // The file ends inside the disk (it was cut after it was opened): what is missing reads as zeroes. Direct I/O stops
      // inside a block nowhere else, and could not go on from there; other reads can.
      if unsafe count == 0 || (context.limits.isDirect && slot.pointee.offset & context.limits.blockMask != 0) {
        unsafe slot.pointee.fillWithZeroes()
      }
    } else {
      // Begin the rest on a whole block; writing the same bytes twice changes nothing.
      count &= ~Int(context.limits.blockMask)
      guard unsafe count > 0 || slot.pointee.retry() else {
        refuse(index, .ioError)
        return false
      }
      unsafe slot.pointee.skip(count)
      unsafe slot.pointee.remaining &-= UInt64(count)
      unsafe slot.pointee.offset &+= UInt64(count)
    }
    if count > 0 { unsafe slot.pointee.retries = 0 }
    guard unsafe slot.pointee.remaining == 0 else { return true }
    finish(index, .ok)
    return false
  }

  /// Transfers through an aligned copy, as much at a time as it holds.
  @inline(never)
  private mutating func transferBounced<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    while true {
      if unsafe slot.pointee.bounce == nil {
        unsafe slot.pointee.bounce = Bounce()
        counters.add(.bounces)
      }
      guard let base = unsafe slot.pointee.bounce?.base, let segment = unsafe slot.pointee.bounce?.segment else { return refuse(index, .ioError) }
      let count = unsafe Int(min(slot.pointee.remaining, UInt64(Bounce.size)))
      let isRead = unsafe slot.pointee.isRead
      if !isRead { unsafe slot.pointee.bounce?.fill(from: slot.pointee.segments, count: count) }
      unsafe segment.pointee = MemorySegment(base: base, count: count)
      let operation = unsafe IOOperation(
        kind: isRead ? .read : .write, isDurable: slot.pointee.isDurable, offset: slot.pointee.offset,
        length: UInt64(count), segments: segment, segmentCount: 1)
      switch engine.start(operation, tag: tagBase | UInt32(truncatingIfNeeded: index)) {
      case .pending: return
      case .finished(let result):
        guard unsafe absorb(index, slot, result, Engine.fillsReads) else { return }
      }
    }
  }

  // MARK: Flush, discard, zero

  private mutating func flush<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    unsafe slot.pointee.stage = .flush
    unsafe step(index, slot, &engine)
  }

  /// Starts the next operation of a request that is no plain transfer; goes on for as long as they finish in place.
  @inline(never)
  private mutating func step<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    while true {
      let operation = unsafe nextOperation(index, slot)
      switch engine.start(operation, tag: tagBase | UInt32(truncatingIfNeeded: index)) {
      case .pending: return
      case .finished(let result):
        guard unsafe advance(index, slot, result) else { return }
      }
    }
  }

  private func nextOperation(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) -> IOOperation {
    switch unsafe slot.pointee.stage {
    case .transfer, .flush: return unsafe IOOperation(kind: .flush)
    case .discard:
      let range = unsafe slab.ranges(index)[Int(slot.pointee.rangeIndex)]
      return unsafe IOOperation(
        kind: .punchHole, offset: range.sector &* 512, length: UInt64(range.sectorCount) &* 512)
    case .zero:
      var operation = unsafe IOOperation(
        kind: slot.pointee.method.operation, isDurable: slot.pointee.isDurable, offset: slot.pointee.offset,
        length: slot.pointee.remaining)
      if unsafe slot.pointee.method == .write {
        operation.length = min(operation.length, UInt64(LaneContext.zeroChunk))
        let segments = unsafe slab.segments(index)
        unsafe segments.pointee = MemorySegment(base: context.zeroes, count: Int(operation.length))
        unsafe operation.segments = segments
        operation.segmentCount = 1
      }
      return operation
    }
  }

  /// Accounts for the result of such an operation. - Returns: true when another one is to follow.
  private mutating func advance(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ result: Int32) -> Bool {
    if result == -EINTR || result == -EAGAIN, unsafe slot.pointee.retry() { return true }
    switch unsafe slot.pointee.stage {
    case .transfer, .flush:
      if result < 0 { refuse(index, .ioError) } else { finish(index, .ok) }
      return false
    case .discard:
      let range = unsafe slab.ranges(index)[Int(slot.pointee.rangeIndex)]
      guard result >= 0 || range.sectorCount == 0 || discardOtherwise(range, result) else {
        refuse(index, .ioError)
        return false
      }
      return unsafe nextRange(index, slot)
    case .zero:
      return unsafe zeroAdvance(index, slot, result)
    }
  }

  /// A discard is advice: where the medium cannot follow it, nothing happens and that is right (virtio 5.2.6.2).
  private func discardOtherwise(_ range: RequestRange, _ error: Int32) -> Bool {
    guard error == -EOPNOTSUPP || error == -ENOSYS || error == -ENOTTY || error == -EINVAL else { return false }
    guard let device = context.blockDevice else { return true }
    let result = clinux_block_discard(device, range.sector &* 512, UInt64(range.sectorCount) &* 512)
    return result == 0 || errno == EOPNOTSUPP || errno == EINVAL
  }

  /// On to the next range, the final flush, or the answer. - Returns: true when another operation is to follow.
  private mutating func nextRange(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) -> Bool {
    unsafe slot.pointee.retries = 0
    unsafe slot.pointee.rangeIndex &+= 1
    if unsafe slot.pointee.rangeIndex < slot.pointee.rangeCount {
      if unsafe slot.pointee.stage == .zero { unsafe beginZeroing(index, slot) }
      return true
    }
    guard unsafe slot.pointee.isDurable else {
      finish(index, .ok)
      return false
    }
    unsafe slot.pointee.stage = .flush
    return true
  }

  private func beginZeroing(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) {
    let range = unsafe slab.ranges(index)[Int(slot.pointee.rangeIndex)]
    unsafe slot.pointee.offset = range.sector &* 512
    unsafe slot.pointee.remaining = UInt64(range.sectorCount) &* 512
    let mayUnmap = range.flags & RequestRange.unmap != 0
    unsafe slot.pointee.method = ZeroMethod.first(
      mayUnmap: mayUnmap, canPunch: !cannotPunch && context.limits.canDiscard, canZeroRange: !cannotZeroRange)
  }

  private mutating func zeroAdvance(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ result: Int32
  ) -> Bool {
    if unsafe slot.pointee.remaining == 0 { return unsafe nextRange(index, slot) }
    let method = unsafe slot.pointee.method
    if result < 0 {
      let isRefusal = result == -EOPNOTSUPP || result == -ENOSYS || result == -ENOTTY || result == -EINVAL
      // The range was punched, so it reads as zeroes; space for it is a courtesy.
      if method == .allocate { return unsafe nextRange(index, slot) }
      guard isRefusal, method != .write else {
        refuse(index, .ioError)
        return false
      }
      // EINVAL is about this range (a block device with larger blocks, say), not about the medium.
      if result != -EINVAL {
        if method == .zeroRange { cannotZeroRange = true } else { cannotPunch = true }
      }
      unsafe slot.pointee.method = method.next(canPunch: !cannotPunch, canZeroRange: !cannotZeroRange)
      return true
    }
    switch method {
    case .punch, .zeroRange, .allocate: return unsafe nextRange(index, slot)
    case .punchToAllocate:
      unsafe slot.pointee.method = .allocate
      return true
    case .write:
      let count = UInt64(result) & ~context.limits.blockMask
      guard unsafe count > 0 || slot.pointee.retry() else {
        refuse(index, .ioError)
        return false
      }
      unsafe slot.pointee.offset &+= count
      unsafe slot.pointee.remaining &-= min(count, slot.pointee.remaining)
      return unsafe slot.pointee.remaining > 0 ? true : nextRange(index, slot)
    }
  }

  // MARK: Publish

  /// Answers a request that failed.
  @inline(never)
  private mutating func refuse(_ index: Int, _ status: BlockStatus) {
    counters.add(.failures)
    finish(index, status)
  }

  /// Answers a request: its status byte, its used element, its slot.
  @inline(__always)
  private mutating func finish(_ index: Int, _ status: BlockStatus) {
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
