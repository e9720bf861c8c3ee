/// Reads and writes on their way: started, continued when they fall short, and accounted for.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// An operation of a request is done: take the request further, or answer it.
  @inline(__always)
  mutating func complete<Engine: BlockEngine & ~Copyable>(_ index: Int, _ result: Int32, _ engine: inout Engine) {
    let slot = unsafe slab.slot(index)
    if unsafe slot.pointee.stage == .whole, unsafe UInt64(bitPattern: Int64(result)) == slot.pointee.operation.length {
      return unsafe answerWhole(index, slot, isFilled: Engine.fillsReads || slot.pointee.operation.kind == .write)
    }
    proceed(index, result, &engine)
  }

  /// Everything but a transfer that was done at the first attempt.
  @inline(never)
  private mutating func proceed<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ result: Int32, _ engine: inout Engine
  ) {
    let slot = unsafe slab.slot(index)
    if unsafe slot.pointee.stage == .whole || slot.pointee.stage == .transfer {
      settle(index, result, &engine)
    } else if unsafe advance(index, slot, result) {
      unsafe step(index, slot, &engine)
    }
  }

  /// Takes a transfer further that was not done at once as a whole.
  @inline(never)
  mutating func settle<Engine: BlockEngine & ~Copyable>(_ index: Int, _ result: Int32, _ engine: inout Engine) {
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.stage = .transfer
    if unsafe absorb(index, slot, result, Engine.fillsReads) { unsafe transfer(index, slot, &engine) }
  }

  /// Starts what is left of a transfer; goes on for as long as it finishes in place.
  @inline(never)
  private mutating func transfer<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    while true {
      // A request that began with a copy ends with it, even when only aligned pieces are left: its results are the copy's.
      if context.limits.memoryMask != 0,
        unsafe slot.pointee.bounce != nil || slot.pointee.operation.isMisaligned(context.limits.memoryMask)
      {
        return unsafe transferBounced(index, slot, &engine)
      }
      switch unsafe engine.start(slot.pointee.operation, tag: tagBase | UInt32(truncatingIfNeeded: index)) {
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
    if unsafe UInt64(bitPattern: Int64(result)) == slot.pointee.operation.length, unsafe slot.pointee.bounce == nil {
      if unsafe fillsReads && slot.pointee.operation.kind == .read {
        unsafe slot.pointee.written &+= slot.pointee.operation.length
      }
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
    var count = Int(result)
    if unsafe slot.pointee.operation.kind == .read {
      if unsafe slot.pointee.bounce != nil, let segments = unsafe slot.pointee.operation.segments {
        unsafe slot.pointee.bounce?.empty(into: segments, count: count)
      }
      unsafe slot.pointee.operation.advance(count)
      if fillsReads { unsafe slot.pointee.written &+= UInt64(count) }
      // The file ends inside the disk (it was cut after it was opened): what is missing reads as zeroes. Direct I/O stops
      // inside a block nowhere else, and could not go on from there; other reads can.
      if unsafe count == 0 || (context.limits.isDirect && slot.pointee.operation.offset & context.limits.blockMask != 0) {
        unsafe slot.pointee.operation.fillWithZeroes()
        unsafe slot.pointee.written &+= slot.pointee.operation.length
        unsafe slot.pointee.operation.length = 0
      }
    } else {
      // Begin the rest on a whole block; writing the same bytes twice changes nothing.
      count &= ~Int(context.limits.blockMask)
      guard unsafe count > 0 || slot.pointee.retry() else {
        refuse(index, .ioError)
        return false
      }
      unsafe slot.pointee.operation.advance(count)
    }
    if count > 0 { unsafe slot.pointee.retries = 0 }
    guard unsafe slot.pointee.operation.length == 0 else { return true }
    finish(index, .ok)
    return false
  }

  /// Transfers through an aligned copy, as much at a time as it holds.
  @inline(never)
  mutating func transferBounced<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ slot: UnsafeMutablePointer<RequestSlot>, _ engine: inout Engine
  ) {
    while true {
      if unsafe slot.pointee.bounce == nil {
        unsafe slot.pointee.bounce = Bounce()
        counters.add(.bounces)
      }
      guard let base = unsafe slot.pointee.bounce?.base, let segment = unsafe slot.pointee.bounce?.segment,
        let segments = unsafe slot.pointee.operation.segments
      else { return refuse(index, .ioError) }
      var operation = unsafe slot.pointee.operation
      operation.length = min(operation.length, UInt64(Bounce.size))
      let count = Int(operation.length)
      if operation.kind == .write { unsafe slot.pointee.bounce?.fill(from: segments, count: count) }
      unsafe segment.pointee = MemorySegment(base: base, count: count)
      unsafe operation.segments = segment
      operation.segmentCount = 1
      switch engine.start(operation, tag: tagBase | UInt32(truncatingIfNeeded: index)) {
      case .pending: return
      case .finished(let result):
        guard unsafe absorb(index, slot, result, Engine.fillsReads) else { return }
      }
    }
  }
}
