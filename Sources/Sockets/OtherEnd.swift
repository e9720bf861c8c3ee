/// The other end of a connection, to be recognized if a peer sends its descriptor.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// The identity of the other end of one of our connections.
///
/// If we held a descriptor of that end, the connection would stay open after its owner is gone, because the kernel reports the
/// end of a stream only when the last descriptor of the other side is closed.
package struct OtherEnd: Sendable {
  /// The address of our end; `nil` for a pair without a name.
  private let ownName: [UInt8]?
  /// The inode number of the other end in the kernel's socket file system; `nil` if the kernel did not tell.
  private let inode: UInt64?

  /// Asks the kernel once. This cannot block: the kernel answers from its own tables.
  ///
  /// - Parameter socket: our end.
  package init(of socket: Int32) {
    ownName = UnixSocket.ownName(of: socket)
    inode = PeerInode.ask(socket)
  }

  /// Whether this descriptor is the other end. Only sockets are examined, so no file system is asked.
  ///
  /// It is recognized by its inode number or, if the kernel did not tell that, by its peer: a listening socket of this process,
  /// or our end of this connection. In the latter way an end of an unnamed pair cannot be recognized.
  package func isHeld(by descriptor: Int32) -> Bool {
    var domain: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    // Fails immediately for anything that is not a socket.
    guard unsafe getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0, domain == AF_UNIX else { return false }
    var information = stat()
    if let inode, unsafe fstat(descriptor, &information) == 0, UInt64(information.st_ino) == inode { return true }
    guard let target = UnixSocket.peerName(of: descriptor) else { return false }
    if target == ownName { return true }
    // The peer credentials of a connecting socket are those of the process that called `listen`.
    return PeerCredentials(of: descriptor)?.process == getpid()
  }
}

/// Asks the kernel for the peer of a socket (sock_diag(7), UNIX_DIAG_PEER).
enum PeerInode {
  private struct Question {
    var header = nlmsghdr()
    var body = unix_diag_req()
  }

  /// - Returns: `nil` if the kernel has no unix_diag, does not let this process ask, or has the socket in another network
  ///   namespace.
  static func ask(_ socket: Int32) -> UInt64? {
    var information = stat()
    guard unsafe fstat(socket, &information) == 0, information.st_mode & S_IFMT == S_IFSOCK else { return nil }
    let kind = Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let number = Glibc.socket(AF_NETLINK, kind, Int32(NETLINK_SOCK_DIAG))
    guard number >= 0 else { return nil }
    let link = OwnedDescriptor(number)
    var question = Question()
    question.header.nlmsg_len = UInt32(MemoryLayout<Question>.size)
    question.header.nlmsg_type = UInt16(SOCK_DIAG_BY_FAMILY)
    question.header.nlmsg_flags = UInt16(NLM_F_REQUEST)
    question.body.sdiag_family = UInt8(AF_UNIX)
    question.body.udiag_states = .max
    question.body.udiag_ino = UInt32(truncatingIfNeeded: information.st_ino)
    question.body.udiag_show = UInt32(UDIAG_SHOW_PEER)
    question.body.udiag_cookie = (.max, .max)
    let size = MemoryLayout<Question>.size
    guard unsafe send(link.rawValue, &question, size, 0) == size else { return nil }
    // The answer is there when `send` returns.
    var answer = [UInt8](repeating: 0, count: 1024)
    let count = unsafe recv(link.rawValue, &answer, answer.count, Int32(MSG_DONTWAIT))
    return count > 0 ? peer(in: Array(answer.prefix(count))) : nil
  }

  /// - Parameter answer: one message of the kernel: a header, a `unix_diag_msg`, and attributes.
  static func peer(in answer: [UInt8]) -> UInt64? {
    func word<Word: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, as: Word.Type) -> Word {
      unsafe answer.withUnsafeBytes { unsafe $0.loadUnaligned(fromByteOffset: offset, as: Word.self) }
    }
    var place = MemoryLayout<nlmsghdr>.size + MemoryLayout<unix_diag_msg>.size
    guard answer.count >= place, word(4, as: UInt16.self) == UInt16(SOCK_DIAG_BY_FAMILY) else { return nil }
    let header = MemoryLayout<nlattr>.size
    while answer.count - place >= header {
      let size = Int(word(place, as: UInt16.self))
      guard size >= header, size <= answer.count - place else { return nil }
      if word(place + 2, as: UInt16.self) == UInt16(UNIX_DIAG_PEER), size >= header + 4 {
        return UInt64(word(place + header, as: UInt32.self))
      }
      place += (size + 3) & ~3
    }
    return nil
  }
}
