/// Turns a doorbell into a file descriptor, for event loops: one small thread sleeps on the word and signals an eventfd
/// whenever it changes.
internal import CLinux
internal import Glibc
internal import Synchronization
public import SystemPackage

/// Turns a doorbell into a file descriptor, for event loops.
///
/// Lives until `stop`, which waits for its thread: only then may the doorbell's memory be unmapped.
public final class DoorbellWatch: Sendable {
  private let state: State
  private let thread: SystemThread

  /// - Parameters:
  ///   - doorbell: its memory stays mapped until `stop` has returned. The file behind it may be truncated at any moment.
  ///   - name: of the thread, for tools.
  /// - Throws: EMFILE or EAGAIN if no descriptor or no thread is available.
  public init(_ doorbell: Doorbell, name: String = "doorbell") throws(Errno) {
    let state = State(doorbell, rung: try .eventCounter())
    self.state = state
    thread = try SystemThread(name: name) { state.run() }
  }

  deinit { stop() }

  /// An eventfd, readable when the word has changed. It is signalled once at the start, for rings before the thread first
  /// looked: spurious kicks are harmless, lost ones are not.
  public var rung: OwnedDescriptor { state.rung }

  /// Ends the thread and waits for it. Further calls do nothing.
  public func stop() {
    state.end()
    thread.join()
  }

  @safe
  private final class State: @unchecked Sendable {
    private let doorbell: Doorbell
    let rung: OwnedDescriptor
    /// 1 from `end` on. In private memory: a word in a file can lose its page, and then a thread that sleeps on it can no
    /// longer be woken.
    private let ending: UnsafeMutablePointer<UInt32>

    /// How long one sleep lasts if the kernel cannot wait for two words at once (before Linux 5.16, or if a sandbox forbids
    /// it): nanoseconds.
    private static let slice: Int64 = 100_000_000

    init(_ doorbell: Doorbell, rung: OwnedDescriptor) {
      self.doorbell = doorbell
      self.rung = rung
      unsafe ending = .allocate(capacity: 1)
      unsafe ending.initialize(to: 0)
    }

    deinit { unsafe ending.deallocate() }

    private var isEnding: SharedCell<UInt32> { unsafe SharedCell(ending) }

    func run() {
      ThreadRole.doorbell.begin()
      var seen = doorbell.counter.loadAcquire() &- 1
      while isEnding.loadAcquire() == 0 {
        let now = doorbell.counter.loadAcquire()
        if now != seen {
          seen = now
          EventCounter.signal(rung.rawValue)
        } else {
          sleep(seen)
        }
      }
    }

    private func sleep(_ seen: UInt32) {
      let result = unsafe clinux_futex_wait_either(doorbell.counter.address, seen, ending, 0)
      switch -result {
      case ENOSYS, EPERM, EINVAL: _ = unsafe clinux_futex_wait(doorbell.counter.address, seen, Self.slice)
      // The page is gone. The next load has it replaced by an empty one; if that fails, this pause keeps the loop from
      // spinning.
      case EFAULT: _ = unsafe clinux_futex_wait(ending, 0, Self.slice / 100)
      default: break
      }
    }

    func end() {
      isEnding.storeRelease(1)
      _ = unsafe clinux_futex_wake_own(ending, Int32.max)
    }
  }
}
