/// Waiting for one descriptor, without epoll.
internal import CLinux
internal import Glibc

enum EventWait {
  static func untilReadable(_ descriptor: Int32) {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    while unsafe poll(&entry, 1, -1) < 0 && errno == EINTR {}
  }

  /// Whether a descriptor can be waited for at all: a regular file, say, is always ready and would keep a waiter busy.
  static func isPossible(_ descriptor: Int32) -> Bool {
    let set = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard set >= 0 else { return false }
    defer { close(set) }
    var event = unsafe epoll_event()
    return unsafe epoll_ctl(set, EPOLL_CTL_ADD, descriptor, &event) == 0
  }
}
