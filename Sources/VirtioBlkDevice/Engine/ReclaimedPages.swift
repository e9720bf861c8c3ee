/// Notices that the kernel has reclaimed pages that data is copied from: a thread that touches one waits for the medium.
internal import CLinux
internal import VirtioCore

/// One thread's major page faults, counted once in a while.
struct ReclaimedPages {
  /// How long they may go unnoticed, each of which may block the queue once: nanoseconds, and copies between readings of the
  /// clock.
  private static let patience = (time: UInt64(1_000_000), copies: 16)

  /// The number of major page faults of this thread when they were last counted, and the time.
  private var seen = (faults: clinux_thread_major_faults(), time: Clock.now)
  /// Copies that had been made then, or when the clock was last read.
  private var seenCopies = 0
  /// System calls made.
  private(set) var calls: UInt64 = 0

  /// Whether a copy had to wait since the last answer. - Parameter copies: made so far.
  @inline(__always)
  mutating func areNoticed(copies: Int) -> Bool {
    copies &- seenCopies >= Self.patience.copies && count(copies)
  }

  @inline(never)
  private mutating func count(_ copies: Int) -> Bool {
    seenCopies = copies
    let now = Clock.now
    guard now &- seen.time > Self.patience.time else { return false }
    calls &+= 1
    let faults = clinux_thread_major_faults()
    defer { seen = (faults, now) }
    return faults != seen.faults
  }
}
