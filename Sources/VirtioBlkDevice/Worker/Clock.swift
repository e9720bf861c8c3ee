/// The clock that windows and deadlines are measured with.
internal import CLinux
internal import Glibc

enum Clock {
  /// Nanoseconds since some moment in the past; never goes back.
  static var now: UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}
