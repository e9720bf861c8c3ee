/// Descriptors of this process: how many there are, and sending them.
internal import CLinux
internal import Glibc

enum Descriptors {
  /// How many of the first numbers are open. What is left over would be found there, as the lowest free number is taken.
  static var open: Int { (0..<96).reduce(0) { $0 + (clinux_fcntl_int(Int32($1), F_GETFD, 0) >= 0 ? 1 : 0) } }

  /// Sends bytes with descriptors over a UNIX socket that does not wait.
  static func send(_ socket: Int32, _ bytes: [UInt8], _ numbers: [Int32]) {
    guard !bytes.isEmpty else { return }
    _ = unsafe clinux_send_with_fds(socket, bytes, bytes.count, numbers, numbers.count)
  }
}
