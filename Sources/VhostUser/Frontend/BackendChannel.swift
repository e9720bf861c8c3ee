/// The second socket, for requests of the back-end: the front-end's end of it.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Receives requests of a back-end. They are answered only if they ask for that.
public final class BackendChannel {
  private let socket: OwnedDescriptor
  private var reader = MessageReader()
  private var writer = MessageWriter()

  init(socket: OwnedDescriptor) { self.socket = socket }

  /// Readable when there may be a message.
  public var descriptor: Int32 { socket.rawValue }

  /// Takes the next message if there is one; never waits.
  ///
  /// - Returns: its request code, a `BackendRequest` if it is known.
  public func next() throws(StreamError) -> UInt32? {
    guard case .message(let message) = try reader.read(socket.rawValue) else { return nil }
    if message.flags.contains(.needReply) {
      let known = BackendRequest(rawValue: message.request) != nil
      writer.enqueue(Message(replyTo: message.request, payload: NumberPayload.encode(known ? 0 : 1)))
      try writer.flush(socket.rawValue)
    }
    return message.request
  }

  static func pair() throws(FrontendError) -> (ours: BackendChannel, theirs: OwnedDescriptor) {
    var ends: [Int32] = [-1, -1]
    let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    guard unsafe socketpair(AF_UNIX, kind, 0, &ends) == 0 else { throw .stream(.system(Errno(rawValue: errno))) }
    return (BackendChannel(socket: OwnedDescriptor(ends[0])), OwnedDescriptor(ends[1]))
  }
}
