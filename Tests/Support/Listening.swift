/// Servers of a test: where they can listen, and whether they do. The kernel's tables tell, because a trial connection could be
/// the only one that a server accepts.
internal import CLinux
internal import Foundation
internal import Glibc

/// A port on the loopback address that is not in use now.
public func freePort() throws -> UInt16 {
  let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  defer { close(descriptor) }
  var address = sockaddr_in()
  address.sin_family = sa_family_t(AF_INET)
  address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
  var length = socklen_t(MemoryLayout<sockaddr_in>.size)
  let isBound = unsafe withUnsafeMutablePointer(to: &address) { pointer in
    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      unsafe bind(descriptor, $0, length) == 0 && getsockname(descriptor, $0, &length) == 0
    }
  }
  guard isBound else { throw WaitedInVain(description: "there is no free port: errno \(errno)") }
  return UInt16(bigEndian: address.sin_port)
}

/// Whether a server accepts connections on that socket.
public func isListening(_ path: String) -> Bool {
  // The fourth word has the flag of a listening socket.
  lines("/proc/net/unix").contains { words in words.count == 8 && words[3] == "00010000" && words[7] == path }
}

/// Whether a server accepts connections on that port of the loopback address, or of all addresses.
public func isListening(port: UInt16) -> Bool {
  let digits = String(port, radix: 16, uppercase: true)
  let place = ":" + String(repeating: "0", count: 4 - digits.count) + digits
  // The second word is the local address, the fourth the state: 0A means listening.
  return lines("/proc/net/tcp").contains { words in words.count > 3 && words[3] == "0A" && words[1].hasSuffix(place) }
}

private func lines(_ table: String) -> [[Substring]] {
  guard let text = try? String(contentsOfFile: table, encoding: .utf8) else { return [] }
  return text.split(separator: "\n").map { $0.split(separator: " ") }
}
