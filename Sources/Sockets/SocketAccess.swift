/// Who may connect to a socket of the file system: its file's mode and group.
internal import CLinux
internal import Glibc
internal import SystemPackage

/// What a socket's file gets, whatever the process's umask is. There is no moment at which more users may connect.
public struct SocketAccess: Hashable, Sendable {
  /// Permission bits; who may write may connect. `nil`: as the umask has it.
  public var mode: UInt32?
  /// `nil`: the process's.
  public var group: UInt32?

  public init(mode: UInt32? = nil, group: UInt32? = nil) {
    self.mode = mode
    self.group = group
  }

  /// A group by its name or number; `nil` when there is none of that name.
  public static func group(_ name: String) -> UInt32? {
    if let number = UInt32(name) { return number }
    return unsafe getgrnam(name)?.pointee.gr_gid
  }

  /// Before the file is there. The kernel takes these bits, less the umask, for the file that bind makes.
  func prepare(_ socket: Int32) {
    guard mode != nil || group != nil else { return }
    // The group is another one until it is changed.
    _ = fchmod(socket, (mode ?? 0o700) & 0o700)
  }

  /// After bind, and before anybody is listened to.
  func apply(to path: String) throws(SocketError) {
    if let group, unsafe lchown(path, uid_t.max, group) != 0 { throw .noGroup(path, group, Errno(rawValue: errno)) }
    let mode = mode ?? (group == nil ? nil : 0o770 & ~Self.umask)
    if let mode, unsafe chmod(path, mode) != 0 { throw .system(path, Errno(rawValue: errno)) }
  }

  /// It can only be read by setting it. Other threads may make files, so never to something wider.
  private static let umask: UInt32 = {
    let before = Glibc.umask(0o777)
    _ = Glibc.umask(before)
    return before
  }()
}
