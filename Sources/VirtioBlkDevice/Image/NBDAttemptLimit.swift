/// Bounds what hangs. Who waits for a connection over TLS goes on after its limit; the attempt does not if the library hangs in reading
/// certificates on a file system that does not answer, and the next one would hang as well.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class NBDAttemptLimit: Sendable {
  /// Of those who open disks, which may be any number one after the other.
  static let openings = NBDAttemptLimit(8)

  private let most: Int
  /// Nobody waits for them any more, and they have not ended when somebody looked last.
  private let left = Mutex<[NBDAttempt]>([])

  /// - Parameter most: so many may be left behind.
  init(_ most: Int) { self.most = most }

  /// Waits for a connection.
  ///
  /// - Parameters:
  ///   - end: `Clock` nanoseconds.
  ///   - begin: makes an attempt that somebody runs.
  /// - Throws: it was not made, or too many have been left behind for one more.
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
