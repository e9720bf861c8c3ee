/// The kind of a descriptor that another process handed over.
internal import CLinux
internal import Glibc

/// The kinds that can carry notifications, and the rest.
public enum DescriptorKind: Hashable, Sendable, CustomStringConvertible {
  /// An eventfd.
  case eventCounter
  /// Either end of a pipe, named or not.
  case pipe
  /// A socket of any family.
  case socket
  /// Anything else, in words.
  case other(String)

  /// Examines an open descriptor without asking the file system that it may belong to: one that never answers would block the
  /// caller. Only without /proc is there no other way.
  public init(of descriptor: Int32) {
    var type: Int32 = 0
    var size = socklen_t(MemoryLayout<Int32>.size)
    if clinux_fcntl_int(descriptor, clinux_f_getpipe_sz, 0) >= 0 {
      self = .pipe
    } else if unsafe getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) == 0 {
      self = .socket
    } else if let link = Self.link(of: descriptor) {
      self = Self(link: link)
    } else {
      self = Self(asking: descriptor)
    }
  }

  /// - Parameter link: the link in /proc/self/fd. Paths begin with a slash, so that no file can be given the name of a
  ///   descriptor without a path.
  init(link: String) {
    switch link {
    case "anon_inode:[eventfd]": self = .eventCounter
    case _ where link.hasPrefix("anon_inode:"): self = .other(String(link.dropFirst("anon_inode:".count)))
    default: self = .other("the file \(link)")
    }
  }

  private init(asking descriptor: Int32) {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else {
      self = .other("no open descriptor")
      return
    }
    // A descriptor without a file type is an anonymous inode. Of those, only an eventfd is expected here; others cannot be
    // written to.
    self = status.st_mode & S_IFMT == 0 ? .eventCounter : .other("a file")
  }

  private static func link(of descriptor: Int32) -> String? {
    let target = unsafe [CChar](unsafeUninitializedCapacity: 256) { room, count in
      guard let start = room.baseAddress else { return }
      count = unsafe max(0, readlink("/proc/self/fd/\(descriptor)", start, room.count))
    }
    return target.isEmpty ? nil : String(decoding: target.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// In words, as in "an eventfd".
  public var description: String {
    switch self {
    case .eventCounter: "an eventfd"
    case .pipe: "a pipe"
    case .socket: "a socket"
    case .other(let words): words
    }
  }
}
