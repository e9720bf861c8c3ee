/// Transfers that do not go as a whole: large ones, ones that fell short, ones through an aligned copy.
internal import CLinux
internal import Glibc
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  mutating func startPart(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> Start {
    let part = unsafe job.pointee.takePart(min(job.pointee.left, Self.stepBytes))
    // What began with a copy ends with it: its results are the copy's.
    if unsafe job.pointee.mustBounce || job.pointee.buffer > 0
      || facts.memoryMask != 0 && part.segmentCount > 0 && part.isMisaligned(facts.memoryMask)
    {
      return unsafe startCopy(tag, job, part)
    }
    return .outcome(engine.start(part, tag: tag))
  }

  /// A part through an aligned buffer.
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
      // What was gone when it was copied is not written.
      guard !memoryIsLost(tag) else { return .failed }
    }
    return .outcome(engine.start(copy, tag: tag))
  }

  /// Accounts for a part that was transferred, or was not.
  mutating func nextPart(_ job: UnsafeMutablePointer<MediumJob>, _ result: Int32) -> Next {
    guard result >= 0 else {
      // The medium asks for more alignment than it said: one attempt with a copy.
      guard result == -EINVAL, facts.isDirect, unsafe job.pointee.buffer == 0 && !job.pointee.mustBounce else {
        return .failed
      }
      unsafe job.pointee.mustBounce = true
      return .step
    }
    let isRead = unsafe job.pointee.operation.kind == .read
    // Past the end of a file that was cut nothing is read.
    if result == 0, isRead { return .failed }
    // On from a whole block; transferring the same bytes twice changes nothing.
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
