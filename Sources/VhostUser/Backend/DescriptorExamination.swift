/// A look at a descriptor that a front-end sent: whether it is of a kind that will do for what it is meant for.
internal import CLinux
internal import Glibc
internal import Sockets
public import VirtioCore

/// What a front-end wants a descriptor to be.
public enum DescriptorPurpose: String, Hashable, Sendable {
  case kick
  case call
  case failure = "err"
  /// The socket on which the back-end speaks unasked.
  case channel = "back-end"
}

/// A descriptor that was found good.
public enum ExaminedDescriptor: Sendable {
  case kick(KickSource)
  /// For `call` and `failure`.
  case sink(CallSink)
  case channel(OwnedDescriptor)
}

/// An examination to be. Making one does no I/O; `carryOut` asks the descriptor, which may be one of a file system that never
/// answers.
public struct DescriptorExamination: Sendable {
  public let purpose: DescriptorPurpose
  let descriptor: OwnedDescriptor

  /// What the descriptor is good for, or a refusal with one sentence.
  ///
  /// - Parameter name: of our end of the connection on which it came; `nil` where it has none.
  public func carryOut(onConnectionTo name: [UInt8]? = nil) -> Result<ExaminedDescriptor, Refusal> {
    do throws(Refusal) { return .success(try examine(name)) } catch { return .failure(error) }
  }

  private func examine(_ ownName: [UInt8]?) throws(Refusal) -> ExaminedDescriptor {
    let kind = DescriptorKind(of: descriptor.rawValue)
    if kind == .socket, leadsBack(ownName) {
      throw .unusableDescriptor(purpose, "it is the front-end's own end of its connection")
    }
    switch purpose {
    case .kick:
      guard kind == .eventCounter || kind == .pipe else {
        throw .unusableDescriptor(purpose, "it is \(kind), and an eventfd or a pipe is needed to wait for")
      }
      return .kick(.eventCounter(descriptor))
    case .call, .failure:
      do { return .sink(try CallSink(descriptor: descriptor)) } catch { throw .unusableDescriptor(purpose, "\(error)") }
    case .channel:
      guard kind == .socket, option(SO_DOMAIN) == AF_UNIX, option(SO_TYPE) == Int32(SOCK_STREAM.rawValue),
        option(SO_ACCEPTCONN) == 0
      else { throw .unusableDescriptor(purpose, "it is no connected UNIX stream socket") }
      return .channel(descriptor)
    }
  }

  /// The other end of a connection with us, held by us, would keep that connection open after its front-end has gone. It is
  /// told by where it leads: to a listening socket of this process, or to that of this very connection. An end of a pair
  /// without a name leads nowhere and cannot be told.
  private func leadsBack(_ ownName: [UInt8]?) -> Bool {
    guard let target = UnixSocket.peerName(of: descriptor.rawValue) else { return false }
    if target == ownName { return true }
    // The peer of one who has connected is who called `listen`.
    var peer = ucred()
    var length = socklen_t(MemoryLayout<ucred>.size)
    return unsafe getsockopt(descriptor.rawValue, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid == getpid()
  }

  private func option(_ name: Int32) -> Int32? {
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    return unsafe getsockopt(descriptor.rawValue, SOL_SOCKET, name, &value, &length) == 0 ? value : nil
  }
}
