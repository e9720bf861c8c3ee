/// A small waiter for kernels (and engines) that cannot wait for a futex and for descriptors at once: a thread that sleeps
/// on a doorbell and passes each ring on to an eventfd.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Runs until `stop`, which waits for its thread: the doorbell's memory may go afterwards.
final class DoorbellBridge: Sendable {
  let counter: OwnedDescriptor
  private let doorbell: Doorbell
  private let isStopping = Atomic<Bool>(false)
  private let thread = Mutex<WorkerThread?>(nil)

  init(_ doorbell: Doorbell) throws(Errno) {
    counter = try OwnedDescriptor.eventCounter()
    self.doorbell = doorbell
    let started = try WorkerThread(name: "doorbell", cpu: nil) { [self] in run() }
    thread.withLock { $0 = started }
  }

  private func run() {
    // Whatever was rung before the first look is reported once: spurious kicks are harmless, lost ones are not.
    var seen = doorbell.counter.loadAcquire() &- 1
    while !isStopping.load(ordering: .acquiring) {
      let now = doorbell.wait(whileEquals: seen)
      if now != seen {
        seen = now
        EventCounter.signal(counter.rawValue)
      }
    }
  }

  func stop() {
    isStopping.store(true, ordering: .releasing)
    let thread = thread.withLock { $0.take() }
    guard let thread else { return }
    // The thread may be about to sleep: wake it until it is gone.
    while !thread.hasFinished {
      _ = unsafe clinux_futex_wake(doorbell.counter.address, Int32.max)
      sched_yield()
    }
    thread.join()
  }
}
