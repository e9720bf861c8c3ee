/// TCP sockets that listen on an address of this machine.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VirtioCore

public enum InternetSocket {
  /// Binds a fresh socket and listens. It is non-blocking and closed on exec.
  ///
  /// - Parameters:
  ///   - host: a numeric address, of either family.
  ///   - port: the TCP port; 0: any free one.
  public static func listen(host: String, port: UInt16) throws(SocketError) -> OwnedDescriptor {
    let name = host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    var hints = unsafe addrinfo()
    unsafe hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE
    unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var found: UnsafeMutablePointer<addrinfo>?
    guard unsafe getaddrinfo(host, "\(port)", &hints, &found) == 0, let address = unsafe found else {
      throw .system(name, .invalidArgument)
    }
    defer { unsafe freeaddrinfo(address) }
    let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    let number = unsafe socket(address.pointee.ai_family, kind, 0)
    guard number >= 0 else { throw .system(name, Errno(rawValue: errno)) }
    let socket = OwnedDescriptor(number)
    // Otherwise connections of a previous server in TIME_WAIT would prevent a quick restart.
    var yes: Int32 = 1
    _ = unsafe setsockopt(number, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
    guard unsafe bind(number, address.pointee.ai_addr, address.pointee.ai_addrlen) == 0 else {
      throw errno == EADDRINUSE ? .inUse(name) : .system(name, Errno(rawValue: errno))
    }
    guard Glibc.listen(number, 16) == 0 else { throw .system(name, Errno(rawValue: errno)) }
    return socket
  }

  /// The port that a socket is bound to.
  package static func port(of socket: Int32) -> UInt16? {
    var address = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    return unsafe withUnsafeMutablePointer(to: &address) { pointer -> UInt16? in
      let result = unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe getsockname(socket, $0, &length) }
      guard result == 0 else { return nil }
      // The port is at the same offset in the addresses of both families.
      return unsafe pointer.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
        unsafe UInt16(bigEndian: $0.pointee.sin_port)
      }
    }
  }
}
