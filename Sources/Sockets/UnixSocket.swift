/// AF_UNIX stream sockets by path: listening, connecting, and their errors.
internal import CLinux
internal import Glibc
public import SystemPackage
public import VirtioCore

/// Why a socket cannot be used. Each description is one sentence for the user who gave the path.
public enum SocketError: Error, Hashable, CustomStringConvertible {
  case pathEmpty
  case pathTooLong(String, limit: Int)
  case inUse(String)
  case notASocket(String)
  case missingDirectory(String)
  case notWritable(String)
  case refused(String)
  case missing(String)
  case notASocketDescriptor(Int32)
  case noGroup(String, UInt32, Errno)
  case system(String, Errno)

  public var description: String {
    switch self {
    case .pathEmpty: "the socket path is empty; give the path of a socket"
    case .pathTooLong(let path, let limit):
      "the socket path '\(path)' is \(path.utf8.count) bytes long, and the kernel allows \(limit); choose a shorter one"
    case .inUse(let path): "another server is listening on '\(path)'; stop it or choose another path"
    case .notASocket(let path): "'\(path)' exists and is not a socket; remove it or choose another path"
    case .missingDirectory(let path): "the directory of '\(path)' does not exist; create it or choose another path"
    case .notWritable(let path): "the directory of '\(path)' is not writable; choose a path where sockets can be created"
    case .refused(let path): "nobody is listening on '\(path)'; start the server first"
    case .missing(let path): "there is no socket '\(path)'; start the server first, or check the path"
    case .notASocketDescriptor(let descriptor):
      "descriptor \(descriptor) is not an open stream socket; pass a listening or connected UNIX socket"
    case .noGroup(let path, let group, let error):
      "the socket '\(path)' cannot be given to group \(group): \(error); be a member of it, or root"
    case .system(let path, let error): "the socket '\(path)' cannot be used: \(error)"
    }
  }
}

/// Sockets in the file system.
public enum UnixSocket {
  /// The longest path, bytes: `sun_path` less its closing zero.
  public static let maximumPathLength = 107

  /// Connects to a listening socket. The socket is non-blocking and closed on exec.
  public static func connect(to path: String) throws(SocketError) -> OwnedDescriptor {
    var address = try self.address(path)
    let socket = try make(path)
    guard unsafe call(Glibc.connect, socket, &address) == 0 else {
      switch errno {
      case ECONNREFUSED: throw .refused(path)
      case ENOENT: throw .missing(path)
      case let code: throw .system(path, Errno(rawValue: code))
      }
    }
    return socket
  }

  /// Binds a new socket to the path and listens. A stale socket file, on which no process listens, is replaced.
  package static func listen(at path: String, access: SocketAccess = SocketAccess()) throws(SocketError) -> OwnedDescriptor {
    var address = try self.address(path)
    let socket = try make(path)
    access.prepare(socket.rawValue)
    if unsafe call(Glibc.bind, socket, &address) != 0 {
      guard errno == EADDRINUSE else { throw bindError(path, errno) }
      try removeStale(path)
      guard unsafe call(Glibc.bind, socket, &address) == 0 else { throw bindError(path, errno) }
    }
    do throws(SocketError) {
      try access.apply(to: path)
      guard Glibc.listen(socket.rawValue, 16) == 0 else { throw .system(path, Errno(rawValue: errno)) }
    } catch {
      _ = unsafe unlink(path)
      throw error
    }
    return socket
  }

  /// Accepts the next connection.
  /// - Returns: a non-blocking socket, closed on exec; `nil` if none is waiting, or if the peer is gone already.
  package static func accept(_ listener: Int32) throws(Errno) -> OwnedDescriptor? {
    while true {
      let result = clinux_accept(listener)
      if result >= 0 { return OwnedDescriptor(result) }
      switch -result {
      case EINTR: continue
      case EAGAIN, ECONNABORTED: return nil
      default: throw Errno(rawValue: -result)
      }
    }
  }

  /// Whether a descriptor that was passed in listens (true) or is a connection (false); `nil` for anything else.
  static func isListening(_ descriptor: Int32) -> Bool? {
    func option(_ name: Int32) -> Int32? {
      var value: Int32 = 0
      var length = socklen_t(MemoryLayout<Int32>.size)
      return unsafe getsockopt(descriptor, SOL_SOCKET, name, &value, &length) == 0 ? value : nil
    }
    guard option(SO_DOMAIN) == AF_UNIX, option(SO_TYPE) == Int32(SOCK_STREAM.rawValue) else { return nil }
    return option(SO_ACCEPTCONN) == 1
  }

  /// Whether a descriptor that was passed in is a UNIX stream socket that listens.
  package static func isListener(_ descriptor: Int32) -> Bool { isListening(descriptor) == true }

  /// The address that a UNIX socket is bound to, in bytes; `nil` if it has none.
  package static func ownName(of socket: Int32) -> [UInt8]? { unsafe name(getsockname, socket) }
  /// The address of a UNIX socket's peer.
  package static func peerName(of socket: Int32) -> [UInt8]? { unsafe name(getpeername, socket) }

  private static func name(
    _ ask: (Int32, UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> Int32, _ socket: Int32
  ) -> [UInt8]? {
    var address = sockaddr_un()
    var length = socklen_t(MemoryLayout<sockaddr_un>.size)
    let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe ask(socket, $0, &length) }
    }
    guard result == 0, address.sun_family == sa_family_t(AF_UNIX), length > MemoryLayout<sa_family_t>.size else { return nil }
    return unsafe withUnsafeBytes(of: &address) { bytes in unsafe Array(bytes.prefix(Int(length))) }
  }

  /// Makes a descriptor from another process non-blocking and closed on exec.
  static func adopt(_ descriptor: Int32) {
    let flags = fcntl(descriptor, F_GETFL)
    _ = clinux_fcntl_int(descriptor, F_SETFL, flags | O_NONBLOCK)
    _ = clinux_fcntl_int(descriptor, F_SETFD, FD_CLOEXEC)
  }

  private static func removeStale(_ path: String) throws(SocketError) {
    var information = stat()
    guard unsafe lstat(path, &information) == 0 else { return }
    guard information.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path) }
    let nobodyListens: Bool
    do {
      _ = try connect(to: path)
      nobodyListens = false
    } catch {
      // Any other failure (a full backlog, no permission) means that a process listens.
      nobodyListens = error == .refused(path) || error == .missing(path)
    }
    guard nobodyListens else { throw .inUse(path) }
    _ = unsafe unlink(path)
  }

  private static func bindError(_ path: String, _ code: Int32) -> SocketError {
    switch code {
    case ENOENT, ENOTDIR: .missingDirectory(path)
    case EACCES, EPERM, EROFS: .notWritable(path)
    case EADDRINUSE: .inUse(path)
    default: .system(path, Errno(rawValue: code))
    }
  }

  private static func make(_ path: String) throws(SocketError) -> OwnedDescriptor {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
    guard descriptor >= 0 else { throw .system(path, Errno(rawValue: errno)) }
    return OwnedDescriptor(descriptor)
  }

  private static func address(_ path: String) throws(SocketError) -> sockaddr_un {
    let bytes = Array(path.utf8)
    guard !bytes.isEmpty else { throw .pathEmpty }
    guard bytes.count <= maximumPathLength, !bytes.contains(0) else {
      throw .pathTooLong(path, limit: maximumPathLength)
    }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { room in unsafe room.copyBytes(from: bytes) }
    return address
  }

  /// Calls `bind` or `connect`, which take the address as a general `sockaddr`.
  private static func call(
    _ function: (Int32, UnsafePointer<sockaddr>?, socklen_t) -> Int32, _ socket: OwnedDescriptor,
    _ address: inout sockaddr_un
  ) -> Int32 {
    unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { general in
        unsafe function(socket.rawValue, general, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }
}
