/// A thread with a name and a CPU, joined by its owner.
internal import CLinux
internal import Glibc
internal import SystemPackage

/// Joining is the owner's duty, exactly once.
@safe
final class PinnedThread: @unchecked Sendable {
  private let thread: pthread_t

  private final class Start {
    let name: String
    let cpu: Int?
    let body: @Sendable () -> Void
    init(name: String, cpu: Int?, body: @escaping @Sendable () -> Void) {
      self.name = name
      self.cpu = cpu
      self.body = body
    }
  }

  /// - Parameters:
  ///   - name: at most 15 bytes reach the kernel.
  ///   - cpu: run there alone; a CPU that does not exist or is not ours leaves the thread where it may run.
  init(name: String, cpu: Int?, _ body: @escaping @Sendable () -> Void) throws(BenchError) {
    var thread = pthread_t()
    let argument = unsafe Unmanaged.passRetained(Start(name: name, cpu: cpu, body: body)).toOpaque()
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        guard let argument = unsafe argument else { return nil }
        let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
        unsafe pthread_setname_np(pthread_self(), String(start.name.prefix(15)))
        if let cpu = start.cpu { _ = clinux_pin_thread(Int32(clamping: cpu)) }
        start.body()
        return nil
      }, argument)
    guard result == 0 else {
      unsafe Unmanaged<Start>.fromOpaque(argument).release()
      throw .noThread(Errno(rawValue: result))
    }
    self.thread = thread
  }

  func join() { _ = pthread_join(thread, nil) }
}
