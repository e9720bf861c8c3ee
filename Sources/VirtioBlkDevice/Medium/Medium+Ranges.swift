/// Discarding and zeroing byte ranges, with whatever operations the medium supports.
internal import Glibc
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  /// Discards a range: its contents no longer matter. A medium that does not support that does nothing (virtio 5.2.6.2).
  mutating func discard(offset: UInt64, length: UInt64, tag: UInt32) -> JobProgress {
    guard length > 0 else { return .done }
    let kind = engine.takesDiscards ? IOOperation.Kind.blockDiscard : .punchHole
    let job = MediumJob(.discard, unsafe IOOperation(kind: kind, offset: offset, length: length))
    return length <= Self.rangeStepBytes ? ask(job, tag) : begin(job, tag)
  }

  /// Zeroes a range. - Parameter mayUnmap: its space may be deallocated.
  mutating func zero(offset: UInt64, length: UInt64, mayUnmap: Bool, tag: UInt32) -> JobProgress {
    guard length > 0 else { return .done }
    let method = ZeroMethod.first(
      mayUnmap: mayUnmap, canPunch: facts.canDiscard && !cannotPunch, canZeroRange: !cannotZeroRange)
    var job = MediumJob(.zero, unsafe IOOperation(kind: method.operation, offset: offset, length: length))
    job.method = method
    guard method == .punch || method == .zeroRange, length <= Self.rangeStepBytes else { return begin(job, tag) }
    return ask(job, tag)
  }

  /// Overwrites a range with zeroes. The faster operations of file systems and devices are not used, because they leave the old
  /// data on the medium.
  mutating func erase(offset: UInt64, length: UInt64, tag: UInt32) -> JobProgress {
    guard length > 0 else { return .done }
    var job = MediumJob(.zero, unsafe IOOperation(kind: .write, offset: offset, length: length))
    job.method = .write
    return begin(job, tag)
  }

  // MARK: Discard

  mutating func startDiscard(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> Start {
    let bytes = unsafe min(job.pointee.left, Self.rangeStepBytes)
    unsafe job.pointee.part = UInt32(truncatingIfNeeded: bytes)
    // The kind becomes the block device's own call once that turns out to be needed.
    return call(
      unsafe IOOperation(
        kind: job.pointee.operation.kind, offset: job.pointee.operation.offset &+ UInt64(job.pointee.done), length: bytes), tag)
  }

  mutating func nextDiscard(_ job: UnsafeMutablePointer<MediumJob>, _ result: Int32) -> Next {
    if result < 0 {
      guard Self.isRefusal(result) else { return .failed }
      guard facts.isBlockDevice, unsafe job.pointee.operation.kind == .punchHole else {
        // A discard is a hint: if the medium does not support it, nothing happens.
        return .done
      }
      unsafe job.pointee.operation.kind = .blockDiscard
      return .step
    }
    return unsafe advance(job)
  }

  // MARK: Zero

  mutating func startZero(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> Start {
    let method = unsafe job.pointee.method
    let limit = method == .write ? UInt64(MediumFacts.zeroChunk) : Self.rangeStepBytes
    let bytes = unsafe min(job.pointee.left, limit)
    unsafe job.pointee.part = UInt32(truncatingIfNeeded: bytes)
    var operation = unsafe IOOperation(
      kind: method.operation, offset: job.pointee.operation.offset &+ UInt64(job.pointee.done), length: bytes)
    guard method == .write else { return call(operation, tag) }
    let piece = unsafe job.pointee.pieces ?? .allocate(capacity: 1)
    unsafe job.pointee.pieces = piece
    unsafe piece.initialize(to: MemorySegment(base: facts.zeroes, count: Int(bytes)))
    unsafe operation.segments = piece
    operation.segmentCount = 1
    return .outcome(engine.start(operation, tag: tag))
  }

  mutating func nextZero(_ job: UnsafeMutablePointer<MediumJob>, _ result: Int32) -> Next {
    let method = unsafe job.pointee.method
    if result < 0 {
      // The range was punched, so it reads as zeroes; allocating space for it is optional.
      if method == .allocate { return unsafe nextStretch(job) }
      guard Self.isRefusal(result), method != .write else { return .failed }
      // EINVAL is about this range (for example, on a block device with larger blocks), not about the medium.
      if result != -EINVAL {
        if method == .zeroRange { cannotZeroRange = true } else { cannotPunch = true }
      }
      unsafe job.pointee.method = method.next(canPunch: facts.canDiscard && !cannotPunch, canZeroRange: !cannotZeroRange)
      return .step
    }
    switch method {
    case .punch, .zeroRange: return unsafe advance(job)
    case .punchToAllocate:
      unsafe job.pointee.method = .allocate
      return .step
    case .allocate: return unsafe nextStretch(job)
    case .write:
      let bytes = UInt32(result) & ~UInt32(truncatingIfNeeded: facts.blockMask)
      guard bytes > 0 else { return unsafe job.pointee.retry(atMost: Self.attempts) ? .step : .failed }
      unsafe job.pointee.part = min(bytes, job.pointee.part)
      return unsafe advance(job)
    }
  }

  /// The punched part has been allocated again, or could not be: continues with the rest of the range.
  private func nextStretch(_ job: UnsafeMutablePointer<MediumJob>) -> Next {
    unsafe job.pointee.method = .punchToAllocate
    return unsafe advance(job)
  }

  /// The current part is done.
  private func advance(_ job: UnsafeMutablePointer<MediumJob>) -> Next {
    unsafe job.pointee.done &+= job.pointee.part
    unsafe job.pointee.retries = 0
    return unsafe job.pointee.left == 0 ? .done : .step
  }

  /// The medium does not support the operation, at least not on this range.
  private static func isRefusal(_ result: Int32) -> Bool {
    result == -EOPNOTSUPP || result == -ENOSYS || result == -ENOTTY || result == -EINVAL
  }
}
