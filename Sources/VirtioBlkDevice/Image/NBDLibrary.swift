/// libnbd, the library of the NBD project. It is found when it is needed first: a program that serves files neither needs it nor
/// loads the two dozen libraries that come with it.
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
  /// Loads the library if it is there. - Returns: why it is not; `nil` when it is.
  public static func load() -> NBDFailure? {
    do throws(NBDFailure) {
      _ = try NBDLibrary.find()
      return nil
    } catch { return error }
  }

  /// Connections over TLS that are being made.
  static let attempts = Atomic<Int>(0)
  /// Milliseconds that the end of a process waits for these; whoever gave one up has cut it off.
  private static let limit = 2000

  /// The end of the library that encrypts destroys what a thread still uses that is making a connection: then the process ends
  /// without it.
  static func attendExit() {
    _ = unsafe clinux_on_exit { status, _ in
      for _ in 0..<NBDSupport.limit where NBDSupport.attempts.load(ordering: .acquiring) > 0 { usleep(1000) }
      if NBDSupport.attempts.load(ordering: .acquiring) > 0 { RBDSupport.leave(status) }
    }
  }
}
