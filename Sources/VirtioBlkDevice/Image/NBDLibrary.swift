/// libnbd, the library of the NBD project. It is found when it is needed first: a program that serves files neither needs it nor
/// loads the two dozen libraries that come with it.
internal import CLinux
internal import Glibc

@safe
final class NBDLibrary: @unchecked Sendable {
  /// Written once.
  let functions: UnsafeMutablePointer<clinux_nbd>

  private init(_ functions: UnsafeMutablePointer<clinux_nbd>) { unsafe self.functions = functions }

  private static let loaded: Result<NBDLibrary, NBDFailure> = {
    let functions = UnsafeMutablePointer<clinux_nbd>.allocate(capacity: 1)
    unsafe functions.initialize(to: clinux_nbd())
    guard let missing = unsafe clinux_nbd_load(functions) else { return unsafe .success(NBDLibrary(functions)) }
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
}
