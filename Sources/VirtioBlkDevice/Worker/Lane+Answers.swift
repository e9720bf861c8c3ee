/// Answers off the fast path: with a status other than OK, in the order of the requests (if the driver relies on that, or
/// recovery after a crash needs it), and with a dirty log.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Answers a request that failed.
  @inline(never)
  mutating func refuse(_ index: Int, _ status: BlockStatus) {
    countFailure(status)
    answerWithStatus(index, status)
  }

  /// Answers a request that writes nothing but its status into guest memory, which counts only if it is the first writable byte
  /// (virtio 2.6.8.2).
  mutating func answerWithStatus(_ index: Int, _ status: BlockStatus) {
    answer(index, status, written: unsafe slab.slot(index).pointee.written == 1 ? 1 : 0)
  }

  /// Answers a request that has a slot: its status byte, its used element, its slot.
  ///
  /// - Parameter written: bytes written into guest memory from the first writable byte on, without a gap.
  @inline(never)
  mutating func answer(_ index: Int, _ status: BlockStatus, written: Int) {
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.status = status
    guard !isPlain else {
      unsafe slot.pointee.written = UInt32(truncatingIfNeeded: written)
      return unsafe show(index, slot)
    }
    unsafe answerWatched(index, slot, written: UInt32(truncatingIfNeeded: written))
  }

  @inline(__always)
  mutating func show(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) {
    if looksAtAnswers { unsafe countOther(slot) }
    unsafe slot.pointee.statusByte.unsafelyUnwrapped.storeBytes(of: slot.pointee.status.rawValue, as: UInt8.self)
    push(slab.takeChain(at: index), written: unsafe slot.pointee.written)
    slab.give(index)
  }

  // MARK: In the order of the requests, and with a dirty log

  /// Like `complete`, with a shortcut for a plain transfer whose answer is due.
  @inline(__always)
  mutating func completeInOrder<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    let slot = unsafe slab.slot(index)
    guard unsafe order.isDue(slot.pointee.number), unsafe account.answers.extendPlain(slot.pointee.arrival) else {
      return complete(index, isDone: true, &medium)
    }
    let written = unsafe slot.pointee.written
    unsafe slot.pointee.statusByte.unsafelyUnwrapped.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
    order.advance()
    push(slab.takeChain(at: index), written: written)
    slab.give(index)
    if order.waitingCount > 0 { answerDue() }
  }

  /// Like `answer`, for a request whose status is set. In order, an answer waits for those of all earlier requests.
  @inline(__always)
  mutating func answerWatched(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, written: UInt32) {
    // Until now the slot's `written` is the length of a request that succeeds. A different length, or 0, means that not all of
    // it was written.
    if isInOrder { unsafe slot.pointee.isWhole = written > 0 && written == slot.pointee.written }
    unsafe slot.pointee.written = written
    guard isOrdered else { return unsafe showWatched(index, slot) }
    unsafe slot.pointee.isFinished = true
    order.wait(index, unsafe slot.pointee.number)
    answerDue()
  }

  /// Publishes answers that were waiting for earlier ones, up to the first request that is not answered.
  @inline(never)
  private mutating func answerDue() {
    while let index = order.takeDue() {
      unsafe slab.slot(index).pointee.isFinished = false
      unsafe showWatched(index, slab.slot(index))
    }
  }

  @inline(__always)
  mutating func showWatched(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>) {
    if looksAtAnswers { unsafe countOther(slot) }
    let statusByte = unsafe slot.pointee.statusByte.unsafelyUnwrapped
    unsafe statusByte.storeBytes(of: slot.pointee.status.rawValue, as: UInt8.self)
    if log != nil { unsafe log?.markBuffer(statusByte, count: 1) }
    unsafe pushWatched(slab.takeChain(at: index), written: slot.pointee.written, isWhole: slot.pointee.isWhole)
    slab.give(index)
  }

  /// Answers a transfer that completed in place while no request that has to be answered before it is in flight: it uses only
  /// the segments of its slot.
  @inline(__always)
  mutating func answerInPlace(
    _ chain: consuming Chain, _ statusByte: UnsafeMutableRawPointer, _ written: UInt32, _ index: Int
  ) {
    if log != nil { logData(index, written) }
    unsafe statusByte.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
    if log != nil { unsafe log?.markBuffer(statusByte, count: 1) }
    pushWatched(chain, written: written, isWhole: written > 0)
  }

  @inline(__always)
  private mutating func pushWatched(_ chain: consuming Chain, written: UInt32, isWhole: Bool) {
    guard isInOrder else { return push(chain, written: written) }
    guard !pushesWithCare else { return pushWithCare(chain, written: written, isWhole: isWhole) }
    ring.pushInOrder(chain, written: written, isWhole: isWhole)
    KillPoint.pass(.answerPushed)
    if ring.unpublished >= publishEvery { publishEarly() }
  }
}
