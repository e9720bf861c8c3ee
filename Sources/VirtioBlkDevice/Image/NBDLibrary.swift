/// libnbd, the library of the NBD project. It is loaded when it is first needed: a program that serves files neither needs it
/// nor loads the two dozen libraries that come with it.
internal import CLinux
internal import Glibc
internal import Synchronization

@safe
final class NBDLibrary: @unchecked Sendable {
  /// Written once.
  let functions: UnsafeMutablePointer<clinux_nbd>

  private init(_ functions: UnsafeMutablePointer<clinux_nbd>) { unsafe self.functions = functions }

  private static let loaded: Result<NBDLibrary, NBDFailure> = {
    let functions = UnsafeMutablePointer<clinux_nbd>.allocate(capacity: 1)
    unsafe functions.initialize(to: clinux_nbd())
    guard let missing = unsafe clinux_nbd_load(functions) else {
      NBDSupport.attendExit()
      return unsafe .success(NBDLibrary(functions))
    }
    unsafe functions.deallocate()
    return unsafe .failure(.noLibrary(String(cString: missing)))
  }()

  /// - Throws: `noLibrary`.
  static func find() throws(NBDFailure) -> NBDLibrary { try loaded.get() }
}

/// Loads libnbd ahead of time.
///
/// For a process that is about to give up the right to load libraries.
public enum NBDSupport {
  /// Loads the library if it is there. - Returns: why it is not; `nil` if it is.
  public static func load() -> NBDFailure? {
    do throws(NBDFailure) {
      _ = try NBDLibrary.find()
      return nil
    } catch { return error }
  }

  /// Connections over TLS that are being made.
  static let attempts = Atomic<Int>(0)
  /// Milliseconds that the end of a process waits for these; the socket of an attempt that was given up has been shut down.
  private static let limit = 2000

  /// The TLS library's exit handler destroys what a thread that is making a connection still uses. If there is such a thread,
  /// the process ends without running that handler.
  static func attendExit() {
    _ = unsafe clinux_on_exit { status, _ in
      for _ in 0..<NBDSupport.limit where NBDSupport.attempts.load(ordering: .acquiring) > 0 { usleep(1000) }
      if NBDSupport.attempts.load(ordering: .acquiring) > 0 { RBDSupport.leave(status) }
    }
  }
}
