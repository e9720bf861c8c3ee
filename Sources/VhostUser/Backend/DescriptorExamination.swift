/// Checks whether a descriptor that a front-end sent is of a kind that suits its purpose.
internal import CLinux
internal import Glibc
package import Sockets
public import VirtioCore

/// The purpose of a descriptor.
public enum DescriptorPurpose: String, Hashable, Sendable {
  case kick
  case call
  case failure = "err"
  /// The socket for requests of the back-end.
  case channel = "back-end"
}

/// A descriptor that was found suitable.
public enum ExaminedDescriptor: Sendable {
  case kick(KickSource)
  /// For `call` and `failure`.
  case sink(CallSink)
  case channel(OwnedDescriptor)
}

/// A pending examination. Making one does no I/O; `carryOut` queries the descriptor, which may belong to a file system that
/// never answers.
public struct DescriptorExamination: Sendable {
  public let purpose: DescriptorPurpose
  let descriptor: OwnedDescriptor

  /// The examined descriptor, or a refusal with one sentence.
  ///
  /// - Parameter otherEnd: the peer's end of the connection on which it came, which it must not be; `nil` if that was
  ///   checked before.
  package func carryOut(onConnectionTo otherEnd: OtherEnd? = nil) -> Result<ExaminedDescriptor, Refusal> {
    do throws(Refusal) { return .success(try examine(otherEnd)) } catch { return .failure(error) }
  }

  private func examine(_ otherEnd: OtherEnd?) throws(Refusal) -> ExaminedDescriptor {
    if let otherEnd, otherEnd.isHeld(by: descriptor.rawValue) {
      throw .unusableDescriptor(purpose, "it is the front-end's own end of its connection")
    }
    let kind = DescriptorKind(of: descriptor.rawValue)
    switch purpose {
    case .kick:
      guard kind == .eventCounter || kind == .pipe else {
        throw .unusableDescriptor(purpose, "it is \(kind), and an eventfd or a pipe is needed")
      }
      return .kick(.eventCounter(descriptor))
    case .call, .failure:
      do { return .sink(try CallSink(descriptor: descriptor)) } catch { throw .unusableDescriptor(purpose, "\(error)") }
    case .channel:
      guard kind == .socket, option(SO_DOMAIN) == AF_UNIX, option(SO_TYPE) == Int32(SOCK_STREAM.rawValue),
        option(SO_ACCEPTCONN) == 0
      else { throw .unusableDescriptor(purpose, "it is not a connected UNIX stream socket") }
      return .channel(descriptor)
    }
  }

  private func option(_ name: Int32) -> Int32? {
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    return unsafe getsockopt(descriptor.rawValue, SOL_SOCKET, name, &value, &length) == 0 ? value : nil
  }
}
