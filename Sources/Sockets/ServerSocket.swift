/// Where front-ends connect: a path that this process listens on, or a descriptor that was passed in.
internal import CLinux
internal import Glibc
public import VirtioCore

/// A listening socket. If it was created here, its file is removed when it is closed, unless another file has taken its place.
public final class Listener {
  package let socket: OwnedDescriptor
  /// `nil` for a socket that was passed in, whose file is not removed here.
  public let path: String?
  private let inode: (device: UInt64, number: UInt64)?
  /// Remove the file when this is released; not while another process continues with the socket.
  private var ownsFile = true

  /// Listens on a path. A stale socket file, on which no process listens, is replaced; a live one is left alone.
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

  /// Continues with the listening socket of another process, which owns its file until `ownFile`.
  ///
  /// - Parameter path: its path; `nil`: its file is never removed.
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

  /// The process that had the socket has given it up: this one removes the file when it closes.
  public func ownFile() { ownsFile = true }

  deinit { removeFile() }

  /// Removes the file immediately, for a process that ends without releasing its objects.
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

/// The socket of a server.
public enum ServerSocket {
  /// Front-ends come and go.
  case listening(Listener)
  /// One front-end is connected already; after it no other can connect.
  case connected(OwnedDescriptor)

  /// Removes the file of a socket that was created here, for a process that ends without releasing it.
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
