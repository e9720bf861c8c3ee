/// Linux's eventfd: a counter in the kernel that wakes its waiters.
internal import CLinux
internal import Glibc
public import SystemPackage

extension OwnedDescriptor {
  /// A new event counter, non-blocking and closed on exec.
  public static func eventCounter() throws(Errno) -> OwnedDescriptor {
    let descriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    return OwnedDescriptor(descriptor)
  }
}

/// Operations on an eventfd, for callers that have only its number.
public enum EventCounter {
  /// Adds one. Errors are ignored: if the counter or the pipe is full, the other side has been notified already, and a closed
  /// peer needs no notification.
  public static func signal(_ descriptor: Int32) {
    var one: UInt64 = 1
    while unsafe write(descriptor, &one, 8) < 0 && errno == EINTR {}
  }

  /// Reads and clears the count, 0 if nothing was signalled. The descriptor must be non-blocking.
  @discardableResult public static func drain(_ descriptor: Int32) -> UInt64 {
    var value: UInt64 = 0
    return unsafe read(descriptor, &value, 8) == 8 ? value : 0
  }
}
