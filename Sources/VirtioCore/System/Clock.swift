/// Monotonic time for windows, deadlines and latencies, and CPU time for costs, in nanoseconds.
internal import CLinux
internal import Glibc

/// The clocks that this program reads. All times are nanoseconds.
public enum Clock {
  private static func read(_ clock: clockid_t) -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(clock, &time)
    return UInt64(bitPattern: Int64(time.tv_sec)) &* 1_000_000_000 &+ UInt64(bitPattern: Int64(time.tv_nsec))
  }

  /// Time since some moment in the past; it never goes back. Read without a system call if the kernel's clock source allows it.
  public static var now: UInt64 { read(CLOCK_MONOTONIC) }

  /// CPU time of the calling thread.
  public static func thread() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }

  /// CPU time of all threads of this process, including those that have ended and the kernel's I/O workers for it.
  public static func ownProcess() -> UInt64 { read(CLOCK_PROCESS_CPUTIME_ID) }

  /// CPU time of another process; `nil` if it is gone.
  public static func process(_ process: Int32) -> UInt64? {
    var clock = clockid_t()
    guard unsafe clock_getcpuclockid(process, &clock) == 0 else { return nil }
    return read(clock)
  }
}
