/// Turns a futex word into a file descriptor: one small thread that sleeps on the word and signals an eventfd whenever it
/// changed, so that a transport can wait for its mailbox, its device and a signal in one poll.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Lives from `init` to `stop`; whoever makes one must stop it before the word is unmapped.
final class MailboxWaiter {
  /// What the thread and its owner share.
  private final class State: Sendable {
    let bell: Doorbell
    let changed: OwnedDescriptor
    let stopping = Atomic<Bool>(false)
    let ended = Atomic<Bool>(false)

    init(_ bell: Doorbell) throws(Errno) {
      self.bell = bell
      changed = try .eventCounter()
    }

    func run() {
      var seen = bell.counter.loadAcquire()
      // What came before the first look counts as a change.
      EventCounter.signal(changed.rawValue)
      while !stopping.load(ordering: .acquiring) {
        let now = bell.wait(whileEquals: seen)
        if now != seen { EventCounter.signal(changed.rawValue) }
        seen = now
      }
      ended.store(true, ordering: .releasing)
    }
  }

  private let state: State
  private let thread: pthread_t

  init(_ bell: Doorbell) throws(Errno) {
    state = try State(bell)
    var thread = pthread_t()
    let context = unsafe Unmanaged.passRetained(state)
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        if let argument = unsafe argument { unsafe Unmanaged<State>.fromOpaque(argument).takeRetainedValue().run() }
        return nil
      }, context.toOpaque())
    self.thread = thread
    guard result == 0 else {
      unsafe context.release()
      throw Errno(rawValue: result)
    }
  }

  /// Readable when the word has changed.
  var changed: Int32 { state.changed.rawValue }

  /// Ends the thread and waits for it.
  func stop() {
    state.stopping.store(true, ordering: .releasing)
    // A wake-up between its look at `stopping` and its sleep would be lost, so wake until it has gone.
    while !state.ended.load(ordering: .acquiring) {
      _ = unsafe clinux_futex_wake(state.bell.counter.address, Int32.max)
      usleep(200)
    }
    pthread_join(thread, nil)
  }
}
