/// A thread of the operating system: named, pinned to a CPU if requested, joined by its owner.
internal import CLinux
internal import Glibc
internal import Synchronization
public import SystemPackage

/// A thread of the operating system.
///
/// For work that must not run on a thread of a pool because it blocks in system calls. The owner joins it, at most once; a
/// thread that is never joined runs on until its body returns.
///
/// All signals are blocked except those of its own faults and of profilers. Signals are for the thread that waits for them, and
/// a signal that would end the process (SIGPIPE, SIGXFSZ) is then just an error of the system call that caused it.
@safe
public final class SystemThread: @unchecked Sendable {
  /// Bytes of stack that are enough for a queue's thread. A thousand of them must not reserve the usual 8 MiB each.
  public static let smallStack = 256 << 10

  private let thread: pthread_t
  private let finished: Flag
  private let isJoined = Atomic<Bool>(false)

  private final class Flag: Sendable { let value = Atomic<Bool>(false) }

  private final class Start {
    let name: String
    let cpu: Int?
    let body: @Sendable () -> Void
    let finished: Flag
    init(name: String, cpu: Int?, body: @escaping @Sendable () -> Void, finished: Flag) {
      self.name = name
      self.cpu = cpu
      self.body = body
      self.finished = finished
    }
  }

  /// - Parameters:
  ///   - name: the name that tools show; cut to 15 bytes.
  ///   - cpu: run on this CPU only; if it does not exist or is not allowed, the thread is not pinned.
  ///   - stackSize: bytes, at least 64 KiB.
  /// - Throws: EAGAIN if a limit of threads or of memory is reached.
  public init(
    name: String, cpu: Int? = nil, stackSize: Int = SystemThread.smallStack, _ body: @escaping @Sendable () -> Void
  ) throws(Errno) {
    finished = Flag()
    let start = Start(name: name, cpu: cpu, body: body, finished: finished)
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    defer { unsafe pthread_attr_destroy(&attributes) }
    unsafe pthread_attr_setstacksize(&attributes, max(stackSize, 64 << 10))
    // Signals are blocked from its first instruction on, whichever thread creates it: a thread of a pool blocks none.
    var blocked = Self.blockedSignals()
    unsafe pthread_attr_setsigmask_np(&attributes, &blocked)
    var thread = pthread_t()
    let argument = unsafe Unmanaged.passRetained(start).toOpaque()
    let result = unsafe pthread_create(
      &thread, &attributes,
      { argument in
        guard let argument = unsafe argument else { return nil }
        let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
        unsafe pthread_setname_np(pthread_self(), SystemThread.shortened(start.name))
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

  deinit { if !isJoined.load(ordering: .acquiring) { pthread_detach(thread) } }

  /// The body has returned; `join` will not wait.
  public var hasFinished: Bool { finished.value.load(ordering: .acquiring) }

  /// Waits until the body has returned. Only the first call does.
  public func join() {
    guard !isJoined.exchange(true, ordering: .acquiringAndReleasing) else { return }
    _ = pthread_join(thread, nil)
  }

  /// At most 15 bytes, and whole characters: the kernel refuses a longer name altogether.
  private static func shortened(_ name: String) -> String {
    var name = name
    while name.utf8.count > 15 { name.removeLast() }
    return name
  }

  /// All signals except those of faults and of profilers.
  private static func blockedSignals() -> sigset_t {
    var blocked = sigset_t()
    unsafe sigfillset(&blocked)
    for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS, SIGPROF] { unsafe sigdelset(&blocked, fault) }
    return blocked
  }
}
