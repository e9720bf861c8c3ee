/// Recovery: if a previous run was interrupted, a lane first executes the requests that were popped then and never answered.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// The turn of a lane that is not running: one that recovers pops the remaining interrupted requests again, until there is no
  /// slot left or the turn reaches its limit, and runs when none are left.
  ///
  /// It is not known whether a request was executed, completely or in part. It is executed again before the driver's next
  /// request, so that it overwrites nothing that the driver wrote later.
  /// - Returns: whether anything was popped.
  @inline(never)
  mutating func resume<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) -> Bool {
    guard Ring.isRecorded, state == .recovering else { return false }
    if medium.canBeCut { writesAreClear = .max }
    var left = Medium<Engine>.turnBytes
    while left > 0, state == .recovering, ring.interrupted > 0 {
      // Completions cause the next turn.
      guard let index = slab.take() else { return true }
      let segments = unsafe slab.segments(index)
      var shape = unsafe ChainShape(at: segments)
      let retaken: Chain?
      do throws(QueueError) {
        retaken = unsafe try ring.retake(into: segments, capacity: RequestSlab.segmentsPerSlot, shape: &shape)
      } catch {
        slab.give(index)
        fail(error)
        return true
      }
      guard let chain = consume retaken else {
        slab.give(index)
        break
      }
      guard unsafe shape.writable != shape.end else {
        slab.give(index)
        giveUp(chain)
        return true
      }
      if unsafe parse(chain, shape, segments, index, &left, &medium) { slab.give(index) }
    }
    hadItsTurn = left <= 0
    if ring.interrupted == 0, state == .recovering { state = stopsAfterRecovery ? .draining : .running }
    return true
  }
}
