/// Where front-ends come from: a path that we listen on, or a descriptor that somebody else opened.
internal import CLinux
internal import Glibc
public import VirtioCore

/// A listening socket. One that was made here removes its file when it is closed, unless somebody else has put another file
/// in its place.
public final class Listener {
  package let socket: OwnedDescriptor
  /// `nil` for a socket that was handed in, whose file is not ours to remove.
  public let path: String?
  private let inode: (device: UInt64, number: UInt64)?
  /// The file goes with this. It does not while another process continues with the socket.
  private var ownsFile = true

  /// Listens on a path. A socket file that nobody listens on any more is replaced; a live one is left alone.
  ///
  /// - Parameter access: who may connect.
  public init(path: String, access: SocketAccess = SocketAccess()) throws(SocketError) {
    self.socket = try UnixSocket.listen(at: path, access: access)
    self.path = path
    self.inode = Self.inode(of: path)
  }

  fileprivate init(adopting descriptor: Int32) {
    self.socket = OwnedDescriptor(descriptor)
    self.path = nil
    self.inode = nil
  }

  /// Continues with the listening socket of another process, whose file stays that one's until `ownFile`.
  ///
  /// - Parameter path: where it is; `nil`: its file is nobody's to remove.
  public init(takingOver socket: OwnedDescriptor, path: String?) throws(SocketError) {
    guard UnixSocket.isListening(socket.rawValue) == true else { throw .notASocketDescriptor(socket.rawValue) }
    UnixSocket.adopt(socket.rawValue)
    self.socket = socket
    self.path = path
    self.inode = path.flatMap { Self.inode(of: $0) }
    ownsFile = false
  }

  /// Another process continues with the socket: its file stays.
  public func leaveFile() { ownsFile = false }

  /// The process that had the socket is over with it.
  public func ownFile() { ownsFile = true }

  deinit { removeFile() }

  /// Removes the file at once: for a process that ends without releasing things.
  public func removeFile() {
    guard ownsFile, let path, let inode, let now = Self.inode(of: path), now == inode else { return }
    _ = unsafe unlink(path)
  }

  private static func inode(of path: String) -> (device: UInt64, number: UInt64)? {
    var information = stat()
    guard unsafe lstat(path, &information) == 0 else { return nil }
    return (UInt64(information.st_dev), UInt64(information.st_ino))
  }
}

/// What a server serves.
public enum ServerSocket {
  /// Front-ends come and go.
  case listening(Listener)
  /// One front-end is there already; when it goes, nobody else can come.
  case connected(OwnedDescriptor)

  /// Removes the file of a socket that was made here, for a process that ends without releasing it.
  public func removeFile() {
    if case .listening(let listener) = self { listener.removeFile() }
  }

  /// Takes ownership of a descriptor that this process was started with.
  public static func adopt(_ descriptor: Int32) throws(SocketError) -> ServerSocket {
    guard let isListening = UnixSocket.isListening(descriptor) else { throw .notASocketDescriptor(descriptor) }
    UnixSocket.adopt(descriptor)
    return isListening ? .listening(Listener(adopting: descriptor)) : .connected(OwnedDescriptor(descriptor))
  }
}
