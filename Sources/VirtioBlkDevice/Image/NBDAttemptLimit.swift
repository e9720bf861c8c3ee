/// Bounds the number of attempts that hang. A caller that waits for a connection over TLS goes on after its time limit, but the
/// attempt does not end if the library hangs while it reads certificates from a file system that does not respond, and the next
/// one would hang as well.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class NBDAttemptLimit: Sendable {
  /// For opening disks, of which there may be any number one after the other.
  static let openings = NBDAttemptLimit(8)

  private let most: Int
  /// Attempts that nobody waits for any more and that had not ended when they were last checked.
  private let left = Mutex<[NBDAttempt]>([])

  /// - Parameter most: how many may be left behind.
  init(_ most: Int) { self.most = most }

  /// Waits for a connection.
  ///
  /// - Parameters:
  ///   - end: `Clock` nanoseconds.
  ///   - begin: makes an attempt that is being run.
  /// - Throws: if no connection was made, or too many attempts have been left behind to make one more.
  func connection(
    uri: String, until end: UInt64, _ begin: () throws(Errno) -> NBDAttempt
  ) throws(NBDFailure) -> NBDConnection {
    let count = left.withLock { left in
      left.removeAll(where: \.hasEnded)
      return left.count
    }
    guard count < most else { throw .othersHang(uri: uri, count: count) }
    let attempt: NBDAttempt
    do throws(Errno) { attempt = try begin() } catch { throw .noAnswer(uri: uri, "\(error)") }
    defer { if !attempt.hasEnded { left.withLock { $0.append(attempt) } } }
    return try attempt.result(before: end, uri: uri)
  }
}
