/// Flushes and stable writes through the page cache, which succeed only if concurrent ones did, too.
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  /// A flush or a stable write, or another part of one, is about to be handed to the kernel.
  mutating func beginSync(_ job: UnsafeMutablePointer<MediumJob>) {
    guard syncs != nil, unsafe job.pointee.sync == 0 else { return }
    unsafe job.pointee.sync = syncs!.begin()
  }

  /// All of a flush or a stable write succeeded, as far as the kernel told its caller.
  mutating func waitForOthers(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> JobProgress {
    unsafe job.pointee.sync = syncs?.end(job.pointee.sync) ?? 0
    unsafe job.pointee.waitsForOthers = true
    return unsafe goOnWaiting(tag, job)
  }

  /// Checks whether the results of all concurrent calls are known.
  @inline(never)
  mutating func goOnWaiting(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> JobProgress {
    if let syncs, unsafe !syncs.isHeard(upTo: job.pointee.sync) {
      backlog.waitForOthers(tag, now: Clock.now)
      return .pending
    }
    return unsafe end(job, facts.flushFailed.loadRelaxed() == 0 ? .done : .failed)
  }

  /// Nobody waits for this call any more, whatever its result was.
  mutating func forgetSync(_ job: UnsafeMutablePointer<MediumJob>) {
    guard unsafe job.pointee.sync != 0 else { return }
    if unsafe !job.pointee.waitsForOthers { _ = unsafe syncs?.end(job.pointee.sync) }
    unsafe job.pointee.sync = 0
    unsafe job.pointee.waitsForOthers = false
  }

  /// The results of the calls in flight will never be known, nor will an error that only one of them would have reported.
  mutating func abandonSyncs() {
    guard syncs?.abandon() == true else { return }
    facts.flushFailed.storeRelaxed(1)
  }
}
