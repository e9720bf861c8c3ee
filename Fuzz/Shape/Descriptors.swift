/// Descriptors of this process: how many there are, and sending them.
internal import CLinux
internal import Glibc

enum Descriptors {
  /// The first numbers, polled for no event: the kernel marks those that are not open, and one call for all of them costs a
  /// hundredth of one call for each.
  nonisolated(unsafe) private static let asked = {
    let asked = UnsafeMutableBufferPointer<pollfd>.allocate(capacity: 96)
    for index in asked.indices { asked[index] = pollfd(fd: Int32(index), events: 0, revents: 0) }
    return asked
  }()

  /// How many of the first numbers are open. A leaked descriptor shows up there, because the kernel assigns the lowest free
  /// number.
  static var open: Int {
    guard unsafe poll(asked.baseAddress, nfds_t(asked.count), 0) >= 0 else { fail("descriptors cannot be counted") }
    return unsafe asked.reduce(0) { $0 + (Int32($1.revents) & Int32(POLLNVAL) == 0 ? 1 : 0) }
  }

  /// Sends bytes with descriptors over a UNIX socket.
  static func send(_ socket: Int32, _ bytes: [UInt8], _ numbers: [Int32]) {
    guard !bytes.isEmpty else { return }
    _ = unsafe clinux_send_with_fds(socket, bytes, bytes.count, numbers, numbers.count)
  }
}
