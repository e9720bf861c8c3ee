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

/// Verbs on an eventfd, for owners of a bare number.
public enum EventCounter {
  /// Adds one. A full counter, a closed peer and a pipe at its limit all mean that the other side has been told already.
  public static func signal(_ descriptor: Int32) {
    var one: UInt64 = 1
    while unsafe write(descriptor, &one, 8) < 0 && errno == EINTR {}
  }

  /// Takes the count, 0 when nothing was signalled. The descriptor must be non-blocking.
  @discardableResult public static func drain(_ descriptor: Int32) -> UInt64 {
    var value: UInt64 = 0
    return unsafe read(descriptor, &value, 8) == 8 ? value : 0
  }
}
