/// Waiting for one descriptor, without epoll.
internal import CLinux
internal import Glibc

enum EventWait {
  static func untilReadable(_ descriptor: Int32) {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    while unsafe poll(&entry, 1, -1) < 0 && errno == EINTR {}
  }
}
