/// Requests that are not for the fast path: reads and writes that are malformed, large, durable or spread over many segments,
/// and the completion of everything except plain transfers.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// A chain without room for a status cannot be answered at all.
  @inline(never)
  mutating func giveUp(_ chain: consuming Chain) {
    let head = chain.head
    chain.abandon()
    fail(.noWritableByte(head: head))
  }

  /// Answers a malformed request. - Returns: false, because its slot was released with the answer.
  @inline(never)
  mutating func refuse(
    _ chain: consuming Chain, _ writableBytes: UInt64, _ statusByte: UnsafeMutableRawPointer, _ index: Int,
    _ kind: ArrivalKind
  ) -> Bool {
    if kind.isWrite { account.keptWrites &+= 1 }
    unsafe keep(chain, statusByte, UInt32(truncatingIfNeeded: writableBytes), index, kind)
    if trace != nil { noteTaken(index) }
    refuse(index, .ioError)
    return false
  }

  /// Submits a write that is answered once it is on stable storage. - Returns: false, because its slot is released with the
  /// answer.
  @inline(never)
  mutating func writeDurably<Engine: BlockEngine & ~Copyable>(
    _ operation: IOOperation, _ index: Int, _ medium: inout Medium<Engine>
  ) -> Bool {
    var operation = operation
    operation.isDurable = true
    medium.prepare(operation, tag: tag(index))
    askUnusual(index, &medium)
    return false
  }

  /// Submits an empty read or write, a large one, one with too many segments, or any of a disk that is limited, traced or
  /// zoned.
  @inline(never)
  mutating func askUnusual<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    let operation = medium.prepared(tag(index))
    if trace != nil { noteTaken(index, sector: operation.offset / 512, bytes: operation.length) }
    if operation.kind == .write { account.keptWrites &+= 1 }
    guard operation.length <= rules.requestBytes, operation.segmentCount <= rules.segments,
      operation.hasSegments(ofAtMost: rules.segmentBytes)
    else { return refuse(index, .ioError) }
    guard !looksFirst || mayStart(index, operation.kind == .write ? .write : .read, bytes: operation.length, &medium) else {
      return
    }
    startPrepared(index, &medium)
  }

  /// Submits a transfer that was prepared.
  @inline(__always)
  mutating func startPrepared<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    switch medium.transferPrepared(tag(index)) {
    case .pending: break
    case .done: complete(index, isDone: true, &medium)
    case .failed: complete(index, isDone: false, &medium)
    }
  }

  /// A separate function, so that the fast path has no registers to save.
  @inline(never)
  mutating func completeTraced<Engine: BlockEngine & ~Copyable>(
    _ index: Int, isDone: Bool, _ medium: inout Medium<Engine>
  ) {
    noteCompleted(index)
    completeUnusual(index, isDone: isDone, &medium)
  }

  @inline(__always)
  mutating func completeUnusual<Engine: BlockEngine & ~Copyable>(
    _ index: Int, isDone: Bool, _ medium: inout Medium<Engine>
  ) {
    guard isDone else { return completeFailed(index, &medium) }
    let slot = unsafe slab.slot(index)
    switch unsafe slot.pointee.stage {
    case .transfer, .watchedTransfer:
      if log != nil {
        logTransfer(index)
        if !isOrdered {
          unsafe slot.pointee.status = .ok
          return unsafe showWatched(index, slot)
        }
      }
      answer(index, .ok, written: unsafe Int(slot.pointee.written))
    case .flush: answerWithStatus(index, .ok)
    case .discard, .zero, .erase: askNextRange(index, &medium)
    case .zoneWrite, .zoneFlush, .zoneWait, .zoneRecord: completeZoned(index, isDone: true, &medium)
    case .none: preconditionFailure("a request was answered twice")
    }
  }

  /// Copies a header that is spread over several segments.
  @inline(never)
  func gatherHeader(_ segments: UnsafeMutablePointer<MemorySegment>) -> RequestHeader {
    unsafe withUnsafeTemporaryAllocation(byteCount: RequestHeader.size, alignment: 8) { copy in
      unsafe Self.gather(segments, skipping: 0, into: copy)
      return unsafe RequestHeader(copying: copy.baseAddress!)
    }
  }

  /// Copies bytes out of the guest's segments, which hold at least `skipping` and the output's size together.
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
}
