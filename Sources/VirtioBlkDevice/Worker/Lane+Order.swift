/// Answers that are more than a status byte and a used element: in the order of the requests, where the driver relies on it or
/// recovery after a crash needs it, and with a dirty log.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// A request was taken: later ones are answered after it.
  @inline(__always)
  mutating func queueInOrder(_ index: Int) {
    order.append(index)
    hurdles &+= 1
  }

  /// The first in the order is answered, or will not be.
  @inline(__always)
  mutating func dequeueInOrder() {
    order.removeFirst()
    hurdles &-= 1
  }

  /// As `complete`. Nothing more is to be done if it is a plain transfer, and the first in the order.
  @inline(__always)
  mutating func completeInOrder<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    let slot = unsafe slab.slot(index)
    guard order.first == index, unsafe account.answers.extendPlain(slot.pointee.arrival) else {
      return complete(index, isDone: true, &medium)
    }
    let written = unsafe slot.pointee.written
    unsafe slot.pointee.statusByte.unsafelyUnwrapped.storeBytes(of: BlockStatus.ok.rawValue, as: UInt8.self)
    dequeueInOrder()
    push(slab.takeChain(at: index), written: written)
    slab.give(index)
    if finishedCount > 0 { answerFinished() }
  }

  /// As `answer`, of a request whose status is set. In order, an answer waits for those of all earlier requests.
  @inline(__always)
  mutating func answerWatched(_ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, written: UInt32) {
    // So far the slot's `written` is the length for a request that completes. One that passes 0 wrote something other than
    // that.
    if isInOrder { unsafe slot.pointee.isWhole = written > 0 && written == slot.pointee.written }
    unsafe slot.pointee.written = written
    guard isOrdered else { return unsafe showWatched(index, slot) }
    unsafe slot.pointee.isFinished = true
    finishedCount &+= 1
    answerFinished()
  }

  /// Publishes answers that were waiting for earlier ones, up to the first request that is not answered.
  @inline(never)
  private mutating func answerFinished() {
    while !order.isEmpty, unsafe slab.slot(order.first).pointee.isFinished {
      let first = order.first
      dequeueInOrder()
      finishedCount &-= 1
      unsafe slab.slot(first).pointee.isFinished = false
      unsafe showWatched(first, slab.slot(first))
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

  /// Answers a transfer that completed in place while no request is in flight that has to be answered before it: all it needs
  /// of its slot are the segments.
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
    ring.pushInOrder(chain, written: written, isWhole: isWhole)
    if ring.unpublished >= publishEvery { publishEarly() }
  }
}
