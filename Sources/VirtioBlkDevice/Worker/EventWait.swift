/// Waiting for a single descriptor, without an epoll set that lasts.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

enum EventWait {
  static func untilReadable(_ descriptor: Int32) {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    while unsafe poll(&entry, 1, -1) < 0 && errno == EINTR {}
  }

  /// Whether a descriptor can be waited for at all: a regular file, for example, is always ready and would keep a waiter busy.
  static func check(_ descriptor: Int32) throws(QueueError) {
    let set = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard set >= 0 else { throw reason(Errno(rawValue: errno)) }
    defer { close(set) }
    var event = unsafe epoll_event()
    guard unsafe epoll_ctl(set, EPOLL_CTL_ADD, descriptor, &event) == 0 else { throw reason(Errno(rawValue: errno)) }
  }

  /// The error of a queue whose kick cannot be waited for, from the kernel's error.
  static func reason(_ error: Errno) -> QueueError {
    switch error {
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem: .outOfDescriptors
    case .noMemory, .noSpace: .outOfMemory
    case .resourceTemporarilyUnavailable: .outOfThreads
    default: .kickCannotBeWaitedFor
    }
  }
}
