/// Transfers that are not done in one piece: large ones, short ones, and those through an aligned copy.
internal import CLinux
internal import Glibc
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  mutating func startPart(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> Start {
    let part = unsafe job.pointee.takePart(min(job.pointee.left, Self.stepBytes))
    // A transfer that began with a bounce buffer ends with it: its results are about that buffer.
    if unsafe job.pointee.mustBounce || job.pointee.buffer > 0
      || facts.memoryMask != 0 && part.segmentCount > 0 && part.isMisaligned(facts.memoryMask)
    {
      return unsafe startCopy(tag, job, part)
    }
    return .outcome(engine.start(part, tag: tag))
  }

  /// Transfers a part through an aligned buffer.
  private mutating func startCopy(
    _ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>, _ part: IOOperation
  ) -> Start {
    if unsafe job.pointee.buffer == 0 {
      switch buffers.take() {
      case .buffer(let index): unsafe job.pointee.buffer = Int32(index) + 1
      case .allTaken: return .waitsForBuffer
      case .noMemory: return .failed
      }
      counters.add(.bounces)
    }
    let index = unsafe Int(job.pointee.buffer) - 1
    let bytes = Int(min(part.length, UInt64(BouncePool.size)))
    unsafe job.pointee.part = UInt32(bytes)
    var copy = part
    copy.length = UInt64(bytes)
    unsafe copy.segments = buffers.segment(index, bytes: bytes)
    copy.segmentCount = 1
    if part.kind == .write {
      unsafe buffers.fill(index, from: job.pointee.operation, skipping: Int(job.pointee.done), bytes: bytes)
      // If memory was lost while it was copied, the copy is not written.
      guard !memoryIsLost(tag) else { return .failed }
    }
    return .outcome(engine.start(copy, tag: tag))
  }

  /// Accounts for a part that was transferred, or that failed.
  mutating func nextPart(_ job: UnsafeMutablePointer<MediumJob>, _ result: Int32) -> Next {
    guard result >= 0 else {
      // The medium needs more alignment than it reported: one attempt with a copy.
      guard result == -EINVAL, facts.isDirect, unsafe job.pointee.buffer == 0 && !job.pointee.mustBounce else {
        return .failed
      }
      unsafe job.pointee.mustBounce = true
      return .step
    }
    let isRead = unsafe job.pointee.operation.kind == .read
    // Nothing can be read past the end of a truncated file.
    if result == 0, isRead { return .failed }
    // Continue at a block boundary; transferring the same bytes twice changes nothing.
    var bytes = unsafe min(UInt32(result), job.pointee.part)
    if unsafe bytes < job.pointee.part { bytes &= ~UInt32(truncatingIfNeeded: facts.blockMask) }
    guard bytes > 0 else { return unsafe job.pointee.retry(atMost: Self.attempts) ? .step : .failed }
    if unsafe isRead && job.pointee.buffer > 0 {
      unsafe buffers.empty(
        Int(job.pointee.buffer) - 1, into: job.pointee.operation, skipping: Int(job.pointee.done), bytes: Int(bytes))
    }
    unsafe job.pointee.done &+= bytes
    unsafe job.pointee.retries = 0
    return unsafe job.pointee.left == 0 ? .done : .step
  }
}
