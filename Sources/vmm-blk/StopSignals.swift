/// SIGTERM and SIGINT as something to poll.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Takes the two signals away from their default action. Made before any thread is, because threads inherit the mask.
struct StopSignals {
  /// Readable once one of the signals has come.
  let descriptor: OwnedDescriptor

  init() throws(Errno) {
    var set = sigset_t()
    unsafe sigemptyset(&set)
    unsafe sigaddset(&set, SIGTERM)
    unsafe sigaddset(&set, SIGINT)
    let result = unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
    guard result == 0 else { throw Errno(rawValue: result) }
    let number = unsafe signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK))
    guard number >= 0 else { throw Errno(rawValue: errno) }
    descriptor = OwnedDescriptor(number)
  }
}
