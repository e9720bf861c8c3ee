/// Flushes and stable writes through the page cache, which succeed only if those beside them did.
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  /// A flush or a stable write is about to be handed to the kernel, or another part of it.
  mutating func beginSync(_ job: UnsafeMutablePointer<MediumJob>) {
    guard syncs != nil, unsafe job.pointee.sync == 0 else { return }
    unsafe job.pointee.sync = syncs!.begin()
  }

  /// All of a flush or a stable write went well, as far as the kernel told its caller.
  mutating func waitForOthers(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> JobProgress {
    unsafe job.pointee.sync = syncs?.end(job.pointee.sync) ?? 0
    unsafe job.pointee.waitsForOthers = true
    return unsafe goOnWaiting(tag, job)
  }

  /// Looks whether everything that was beside it has been heard of.
  @inline(never)
  mutating func goOnWaiting(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> JobProgress {
    if let syncs, unsafe !syncs.isHeard(upTo: job.pointee.sync) {
      backlog.waitForOthers(tag, now: Clock.now)
      return .pending
    }
    return unsafe end(job, facts.flushFailed.loadRelaxed() == 0 ? .done : .failed)
  }

  /// Whatever became of it, nobody waits for it any more.
  mutating func forgetSync(_ job: UnsafeMutablePointer<MediumJob>) {
    guard unsafe job.pointee.sync != 0 else { return }
    if unsafe !job.pointee.waitsForOthers { _ = unsafe syncs?.end(job.pointee.sync) }
    unsafe job.pointee.sync = 0
    unsafe job.pointee.waitsForOthers = false
  }

  /// What was in flight is never heard of again, least of all an error that only it reported.
  mutating func abandonSyncs() {
    guard syncs?.abandon() == true else { return }
    facts.flushFailed.storeRelaxed(1)
  }
}
