/// The requests that are no transfer: FLUSH, DISCARD and WRITE_ZEROES, step by step.
internal import CLinux
internal import Glibc
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  // MARK: Start

  mutating func startFlush<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    counters.add(.flushes)
    // There is nothing of ours to commit on a disk that is only read.
    guard !context.limits.isReadOnly else { return finish(index, .ok) }
    unsafe flush(index, slot, &engine)
  }

  /// DISCARD and WRITE_ZEROES: the ranges are copied once and checked as a whole before the first one is touched.
  @inline(never)
  mutating func startRanges<Engine: BlockEngine & ~Copyable>(
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
    unsafe slot.pointee.operation.isDurable = isDurable
    unsafe slot.pointee.rangeIndex = 0
    unsafe slot.pointee.rangeCount = UInt8(count)
    if !isDiscard { unsafe beginZeroing(index, slot) }
    unsafe step(index, slot, &engine)
  }

  // MARK: Steps

  private mutating func flush<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    unsafe slot.pointee.stage = .flush
    unsafe step(index, slot, &engine)
  }

  /// Starts the next operation of a request that is no plain transfer; goes on for as long as they finish in place.
  @inline(never)
  mutating func step<Engine: BlockEngine & ~Copyable>(
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
    case .whole, .transfer, .flush: return unsafe IOOperation(kind: .flush)
    case .discard:
      let range = unsafe slab.ranges(index)[Int(slot.pointee.rangeIndex)]
      return unsafe IOOperation(
        kind: .punchHole, offset: range.sector &* 512, length: UInt64(range.sectorCount) &* 512)
    case .zero:
      var operation = unsafe IOOperation(
        kind: slot.pointee.method.operation, isDurable: slot.pointee.operation.isDurable, offset: slot.pointee.operation.offset,
        length: slot.pointee.operation.length)
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
  mutating func advance(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ result: Int32) -> Bool {
    if result == -EINTR || result == -EAGAIN, unsafe slot.pointee.retry() { return true }
    switch unsafe slot.pointee.stage {
    case .whole, .transfer, .flush:
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
    guard unsafe slot.pointee.operation.isDurable else {
      finish(index, .ok)
      return false
    }
    unsafe slot.pointee.stage = .flush
    return true
  }

  private func beginZeroing(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) {
    let range = unsafe slab.ranges(index)[Int(slot.pointee.rangeIndex)]
    unsafe slot.pointee.operation.offset = range.sector &* 512
    unsafe slot.pointee.operation.length = UInt64(range.sectorCount) &* 512
    let mayUnmap = range.flags & RequestRange.unmap != 0
    unsafe slot.pointee.method = ZeroMethod.first(
      mayUnmap: mayUnmap, canPunch: !cannotPunch && context.limits.canDiscard, canZeroRange: !cannotZeroRange)
  }

  private mutating func zeroAdvance(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ result: Int32
  ) -> Bool {
    if unsafe slot.pointee.operation.length == 0 { return unsafe nextRange(index, slot) }
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
      unsafe slot.pointee.operation.offset &+= count
      unsafe slot.pointee.operation.length &-= min(count, slot.pointee.operation.length)
      return unsafe slot.pointee.operation.length > 0 ? true : nextRange(index, slot)
    }
  }
}
