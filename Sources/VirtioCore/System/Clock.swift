/// Time for windows, deadlines and latencies, and CPU time for costs, in nanoseconds.
internal import CLinux
internal import Glibc

/// The clocks that this program reads. All times are nanoseconds.
public enum Clock {
  private static func read(_ clock: clockid_t) -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(clock, &time)
    return UInt64(bitPattern: Int64(time.tv_sec)) &* 1_000_000_000 &+ UInt64(bitPattern: Int64(time.tv_nsec))
  }

  /// Since some moment in the past; never goes back. Read in user space where the kernel's clock source allows it.
  public static var now: UInt64 { read(CLOCK_MONOTONIC) }

  /// What the calling thread has used of CPUs.
  public static func thread() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }

  /// What all threads of this process have used, with those that ended and the kernel's I/O workers for it.
  public static func ownProcess() -> UInt64 { read(CLOCK_PROCESS_CPUTIME_ID) }

  /// The same for another process; `nil` when it is gone.
  public static func process(_ process: Int32) -> UInt64? {
    var clock = clockid_t()
    guard unsafe clock_getcpuclockid(process, &clock) == 0 else { return nil }
    return read(clock)
  }
}
