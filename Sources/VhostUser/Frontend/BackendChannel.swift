/// The second socket, for requests of the back-end: the front-end's end of it.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Receives requests of a back-end. They are answered only if they ask for a reply.
public final class BackendChannel {
  private let socket: OwnedDescriptor
  private var reader = MessageReader()
  private var writer = MessageWriter()

  init(socket: OwnedDescriptor) { self.socket = socket }

  /// Readable when there may be a message.
  public var descriptor: Int32 { socket.rawValue }

  /// Takes the next message if there is one; never blocks.
  ///
  /// - Returns: its request code, a `BackendRequest` if it is known.
  public func next() throws(StreamError) -> UInt32? { try receive()?.request }

  /// A message of a back-end.
  public enum Said: Hashable, Sendable {
    case configurationChanged
    /// A translation that it misses, or an access that was denied.
    case translation(TranslationMessage)
    /// A request code.
    case other(UInt32)
  }

  /// As `next`, but with the decoded message.
  public func nextMessage() throws(StreamError) -> Said? {
    guard let message = try receive() else { return nil }
    switch BackendRequest(rawValue: message.request) {
    case .configurationChanged: return .configurationChanged
    case .translation:
      guard let said = TranslationMessage(decoding: message.payload) else { return .other(message.request) }
      return .translation(said)
    case nil: return .other(message.request)
    }
  }

  private func receive() throws(StreamError) -> Message? {
    guard case .message(let message) = try reader.read(socket.rawValue) else { return nil }
    if message.flags.contains(.needReply) {
      let known = BackendRequest(rawValue: message.request) != nil
      writer.enqueue(Message(replyTo: message.request, payload: NumberPayload.encode(known ? 0 : 1)))
      try writer.flush(socket.rawValue)
    }
    return message
  }

  static func pair() throws(FrontendError) -> (ours: BackendChannel, theirs: OwnedDescriptor) {
    var ends: [Int32] = [-1, -1]
    let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    guard unsafe socketpair(AF_UNIX, kind, 0, &ends) == 0 else { throw .stream(.system(Errno(rawValue: errno))) }
    return (BackendChannel(socket: OwnedDescriptor(ends[0])), OwnedDescriptor(ends[1]))
  }
}
