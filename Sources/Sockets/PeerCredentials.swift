/// The process at the other end of a UNIX socket.
internal import CLinux
internal import Glibc

/// The credentials that the kernel recorded when a process connected or listened.
public struct PeerCredentials: Hashable, Sendable, CustomStringConvertible {
  public let process: Int32
  public let user: UInt32
  public let group: UInt32

  /// - Returns: `nil` for anything except a connected UNIX socket.
  public init?(of socket: Int32) {
    var peer = ucred()
    var length = socklen_t(MemoryLayout<ucred>.size)
    guard unsafe getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 else { return nil }
    (process, user, group) = (peer.pid, peer.uid, peer.gid)
  }

  /// Whether the peer has this process's user or is root: both can control this process anyway.
  public var isOurs: Bool { user == geteuid() || user == 0 }

  public var description: String { "process \(process) of user \(user)" }
}
