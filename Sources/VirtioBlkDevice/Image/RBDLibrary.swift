/// librbd and librados, the libraries of Ceph. They are loaded when they are first needed: a program that serves files neither
/// needs them nor loads the dozens of libraries that come with them.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import VirtioCore

@safe
final class RBDLibrary: @unchecked Sendable {
  /// Written once.
  let functions: UnsafeMutablePointer<clinux_rbd>

  private init(_ functions: UnsafeMutablePointer<clinux_rbd>) { unsafe self.functions = functions }

  private static let loaded: Result<RBDLibrary, RBDFailure> = {
    let functions = UnsafeMutablePointer<clinux_rbd>.allocate(capacity: 1)
    unsafe functions.initialize(to: clinux_rbd())
    guard let missing = unsafe clinux_rbd_load(functions) else {
      RBDSupport.attendExit()
      return unsafe .success(RBDLibrary(functions))
    }
    unsafe functions.deallocate()
    return unsafe .failure(.noLibrary(String(cString: missing)))
  }()

  /// - Throws: `noLibrary`.
  static func find() throws(RBDFailure) -> RBDLibrary { try loaded.get() }
}

/// What a process that may open images of Ceph clusters does at its start and at its end.
public enum RBDSupport {
  /// Loads the libraries if they are installed, for a process that is about to give up the right to load any. - Returns: why
  /// they are not; `nil` if they are.
  public static func load() -> RBDFailure? {
    do throws(RBDFailure) {
      _ = try RBDLibrary.find()
      return nil
    } catch { return error }
  }

  /// Connections whose threads are running, and those of them that are being closed.
  static let open = Atomic<Int>(0)
  static let closing = Atomic<Int>(0)
  private static let lastWords = Mutex<Callback<Void>?>(nil)

  /// - Parameter body: what to do if the process ends without the libraries' exit handlers.
  public static func whenLeftBehind(_ body: @escaping @Sendable () -> Void) { lastWords.withLock { $0 = Callback(body) } }

  /// Milliseconds that the end of a process waits for connections that are being closed.
  private static let limit = 2000

  /// The libraries' exit handlers destroy what their threads still use. If there are any such threads, the process ends without
  /// running those handlers.
  static func attendExit() {
    _ = unsafe clinux_on_exit { status, _ in
      for _ in 0..<RBDSupport.limit where RBDSupport.closing.load(ordering: .acquiring) > 0 { usleep(1000) }
      if RBDSupport.open.load(ordering: .acquiring) > 0 { RBDSupport.leave(status) }
    }
  }

  /// Ends the process without the libraries' exit handlers.
  static func leave(_ status: Int32) -> Never {
    lastWords.withLock { $0 }?.call(())
    fflush(nil)
    _exit(status)
  }
}
