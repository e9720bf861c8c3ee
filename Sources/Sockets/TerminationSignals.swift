/// Signals, by default SIGTERM and SIGINT, as events to wait for instead of interruptions.
internal import CLinux
internal import Glibc
public import SystemPackage
internal import VirtioCore

/// Owns a signalfd. Must be created before any other thread, so that every thread inherits the blocked signals.
public final class TerminationSignals: Sendable {
  private let owned: OwnedDescriptor

  /// - Parameter signals: those to wait for; `nil`: SIGTERM and SIGINT.
  public init(_ signals: [Int32]? = nil) throws(Errno) {
    var set = sigset_t()
    _ = unsafe sigemptyset(&set)
    for signal in signals ?? [SIGTERM, SIGINT] { _ = unsafe sigaddset(&set, signal) }
    let code = unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
    guard code == 0 else { throw Errno(rawValue: code) }
    let descriptor = unsafe signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    self.owned = OwnedDescriptor(descriptor)
  }

  /// Readable when one of the signals has arrived.
  public var descriptor: Int32 { owned.rawValue }

  /// Takes the number of a signal that has arrived; `nil` if none is left.
  public func take() -> Int32? {
    var information = signalfd_siginfo()
    let size = MemoryLayout<signalfd_siginfo>.size
    return unsafe read(descriptor, &information, size) == size ? Int32(information.ssi_signo) : nil
  }
}
