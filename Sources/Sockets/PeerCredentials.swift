/// Who is at the other end of a UNIX socket.
internal import CLinux
internal import Glibc

/// What the kernel noted of a process when it connected or listened.
public struct PeerCredentials: Hashable, Sendable, CustomStringConvertible {
  public let process: Int32
  public let user: UInt32
  public let group: UInt32

  /// - Returns: `nil` for what is no connected UNIX socket.
  public init?(of socket: Int32) {
    var peer = ucred()
    var length = socklen_t(MemoryLayout<ucred>.size)
    guard unsafe getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 else { return nil }
    (process, user, group) = (peer.pid, peer.uid, peer.gid)
  }

  /// The user that this process acts for, or root: who may do with it what it likes anyway.
  public var isOurs: Bool { user == geteuid() || user == 0 }

  public var description: String { "process \(process) of user \(user)" }
}
