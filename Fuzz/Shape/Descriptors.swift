/// Descriptors of this process: how many there are, and sending them.
internal import CLinux
internal import Glibc

enum Descriptors {
  /// The first numbers, each to be asked about nothing: the kernel says of those that are not open that they are not, and one call
  /// for all of them is a hundredth of one for each.
  nonisolated(unsafe) private static let asked = {
    let asked = UnsafeMutableBufferPointer<pollfd>.allocate(capacity: 96)
    for index in asked.indices { asked[index] = pollfd(fd: Int32(index), events: 0, revents: 0) }
    return asked
  }()

  /// How many of the first numbers are open. What is left over would be found there, as the lowest free number is taken.
  static var open: Int {
    guard unsafe poll(asked.baseAddress, nfds_t(asked.count), 0) >= 0 else { fail("descriptors cannot be counted") }
    return unsafe asked.reduce(0) { $0 + (Int32($1.revents) & Int32(POLLNVAL) == 0 ? 1 : 0) }
  }

  /// Sends bytes with descriptors over a UNIX socket that does not wait.
  static func send(_ socket: Int32, _ bytes: [UInt8], _ numbers: [Int32]) {
    guard !bytes.isEmpty else { return }
    _ = unsafe clinux_send_with_fds(socket, bytes, bytes.count, numbers, numbers.count)
  }
}
