/// A thread of our own: named, pinned if asked, joined by its owner.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// Joining is the owner's duty, exactly once.
@safe
final class WorkerThread: @unchecked Sendable {
  private let thread: pthread_t
  private let finished: FinishedFlag

  private final class FinishedFlag: Sendable { let value = Atomic<Bool>(false) }

  private final class Start {
    let name: String
    let cpu: Int?
    let body: @Sendable () -> Void
    let finished: FinishedFlag
    init(name: String, cpu: Int?, body: @escaping @Sendable () -> Void, finished: FinishedFlag) {
      self.name = name
      self.cpu = cpu
      self.body = body
      self.finished = finished
    }
  }

  /// - Parameters:
  ///   - name: at most 15 bytes reach the kernel.
  ///   - cpu: run on this CPU only; a CPU that does not exist is ignored here and checked where the option is read.
  init(name: String, cpu: Int?, _ body: @escaping @Sendable () -> Void) throws(Errno) {
    finished = FinishedFlag()
    let start = Start(name: name, cpu: cpu, body: body, finished: finished)
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    defer { unsafe pthread_attr_destroy(&attributes) }
    // A queue's thread needs little; a thousand of them must not ask for 8 MiB each.
    unsafe pthread_attr_setstacksize(&attributes, 256 << 10)
    var thread = pthread_t()
    let argument = unsafe Unmanaged.passRetained(start).toOpaque()
    let result = unsafe pthread_create(
      &thread, &attributes,
      { argument in
        guard let argument = unsafe argument else { return nil }
        let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
        unsafe pthread_setname_np(pthread_self(), String(start.name.prefix(15)))
        blockSignals()
        if let cpu = start.cpu { _ = clinux_pin_thread(Int32(clamping: cpu)) }
        start.body()
        start.finished.value.store(true, ordering: .releasing)
        return nil
      }, argument)
    guard result == 0 else {
      unsafe Unmanaged<Start>.fromOpaque(argument).release()
      throw Errno(rawValue: result)
    }
    self.thread = thread
  }

  /// The body has returned; `join` will not wait.
  var hasFinished: Bool { finished.value.load(ordering: .acquiring) }

  func join() { _ = pthread_join(thread, nil) }
}

/// Signals are for the process's own threads. Blocked here, one that ends the process by default (SIGXFSZ, where a write goes
/// past the limit of file sizes) is an error of the system call that caused it, and no more. Faults stay what they are.
private func blockSignals() {
  var blocked = sigset_t()
  unsafe sigfillset(&blocked)
  for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS, SIGPROF] { unsafe sigdelset(&blocked, fault) }
  _ = unsafe pthread_sigmask(SIG_BLOCK, &blocked, nil)
}
