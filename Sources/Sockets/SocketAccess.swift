/// Who may connect to a socket in the file system: the mode and the group of its file.
internal import CLinux
internal import Glibc
internal import SystemPackage

/// The mode and the group of a socket's file, independent of the process's umask. At no moment may more users connect.
public struct SocketAccess: Hashable, Sendable {
  /// Permission bits; write permission allows connecting. `nil`: according to the umask.
  public var mode: UInt32?
  /// The group's number; `nil`: the process's group.
  public var group: UInt32?

  public init(mode: UInt32? = nil, group: UInt32? = nil) {
    self.mode = mode
    self.group = group
  }

  /// A group by its name or number; `nil` if there is no group of that name.
  public static func group(_ name: String) -> UInt32? {
    if let number = UInt32(name) { return number }
    return unsafe getgrnam(name)?.pointee.gr_gid
  }

  /// Called before the file exists. The kernel takes these bits, less the umask, for the file that bind makes.
  func prepare(_ socket: Int32) {
    guard mode != nil || group != nil else { return }
    // Only the owner may connect until the group has been changed.
    _ = fchmod(socket, (mode ?? 0o700) & 0o700)
  }

  /// Called after bind, and before the socket listens.
  func apply(to path: String) throws(SocketError) {
    if let group, unsafe lchown(path, uid_t.max, group) != 0 { throw .noGroup(path, group, Errno(rawValue: errno)) }
    let mode = mode ?? (group == nil ? nil : 0o770 & ~Self.umask)
    if let mode, unsafe chmod(path, mode) != 0 { throw .system(path, Errno(rawValue: errno)) }
  }

  /// The umask can only be read by setting it. Other threads may create files meanwhile, so it is set to the strictest one.
  private static let umask: UInt32 = {
    let before = Glibc.umask(0o777)
    _ = Glibc.umask(before)
    return before
  }()
}
