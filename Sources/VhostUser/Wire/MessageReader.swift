/// Receives messages from a stream socket, however the bytes arrive.
internal import CLinux
public import SystemPackage
internal import VirtioCore

/// Errors that end a connection: after one of them it is unknown where the next message begins.
public enum StreamError: Error, Hashable, CustomStringConvertible {
  case wrongVersion(UInt32)
  case payloadTooLarge(request: UInt32, size: UInt32)
  case tooManyDescriptors
  /// The kernel dropped descriptors, because this process's descriptor table is full.
  case descriptorsLost
  /// The other end closed the connection in the middle of a message.
  case cutOff
  case system(Errno)

  public var description: String {
    switch self {
    case .wrongVersion(let version): "a message of protocol version \(version) was received, and only version 1 is supported"
    case .payloadTooLarge(let request, let size):
      "\(FrontendRequest.name(of: request)) announced \(size) bytes, more than any message has"
    case .tooManyDescriptors: "a message brought more than \(Message.maximumDescriptors) descriptors"
    case .descriptorsLost: "descriptors were lost in transit; raise the limit of open files (ulimit -n)"
    case .cutOff: "the connection ended in the middle of a message"
    case .system(let error): "the socket failed: \(error)"
    }
  }
}

/// The receiving half of a connection. It never reads past the end of the current message, since descriptors belong to the
/// message whose first byte they came with, and it keeps what a slow sender has sent so far.
struct MessageReader {
  enum Progress {
    case message(Message)
    /// The message is not complete yet. Only for a non-blocking socket.
    case nothingYet
    /// The other end closed the connection between two messages.
    case ended
  }

  /// Closes the descriptors that are received; `nil`: their last owner does.
  private let disposer: (any Disposer)?
  private var bytes: [UInt8] = []
  private var header: MessageHeader?
  private var descriptors: [OwnedDescriptor] = []

  init(closingWith disposer: (any Disposer)? = nil) { self.disposer = disposer }

  /// A reader that continues in the middle of a message.
  init(bytes: [UInt8], descriptors: [OwnedDescriptor], closingWith disposer: (any Disposer)?) throws(StreamError) {
    self.disposer = disposer
    self.descriptors = descriptors
    self.bytes = bytes
    if bytes.count >= MessageHeader.size { try decodeHeader() }
  }

  /// The part of an incomplete message that has been received; `nil`: nothing.
  var unread: (bytes: [UInt8], descriptors: [OwnedDescriptor])? { bytes.isEmpty ? nil : (bytes, descriptors) }

  /// Reads until a message is complete or the socket has nothing more.
  mutating func read(_ socket: Int32) throws(StreamError) -> Progress {
    while true {
      let wanted = MessageHeader.size + Int(header?.size ?? 0)
      // There cannot be more bytes than this message has: a reader that was taken over has read in the same way.
      guard bytes.count < wanted else {
        guard let header else {
          try decodeHeader()
          continue
        }
        defer { self = MessageReader(closingWith: disposer) }
        return .message(
          Message(
            request: header.request, flags: header.flags, payload: Array(bytes[MessageHeader.size...]),
            descriptors: descriptors))
      }
      switch try receive(socket, upTo: wanted - bytes.count) {
      case nil: return .nothingYet
      case 0?:
        guard bytes.isEmpty else { throw .cutOff }
        return .ended
      default: break
      }
    }
  }

  private mutating func decodeHeader() throws(StreamError) {
    let header = MessageHeader(decoding: bytes)
    guard header.flags.version == 1 else { throw .wrongVersion(header.flags.version) }
    guard header.size <= MessageHeader.maximumPayload else {
      throw .payloadTooLarge(request: header.request, size: header.size)
    }
    self.header = header
  }

  /// - Returns: how many bytes were received, 0 at the end, `nil` if there is nothing now.
  private mutating func receive(_ socket: Int32, upTo count: Int) throws(StreamError) -> Int? {
    var room = [UInt8](repeating: 0, count: count)
    var numbers = [Int32](repeating: -1, count: Message.maximumDescriptors)
    var arrived = 0
    var truncated: Int32 = 0
    var received: Int
    repeat {
      received = unsafe clinux_receive_with_fds(
        socket, &room, count, Int32(MSG_DONTWAIT), &numbers, numbers.count, &arrived, &truncated)
    } while received == -Int(EINTR)
    // Owned before anything else is checked, so that no path leaks them.
    let owned = numbers[..<arrived].map { OwnedDescriptor($0, closedBy: disposer) }
    if received == -Int(EAGAIN) { return nil }
    if received == -Int(ECONNRESET) { return 0 }
    guard received >= 0 else { throw .system(Errno(rawValue: Int32(-received))) }
    guard truncated == 0 else { throw .descriptorsLost }
    guard descriptors.count + owned.count <= Message.maximumDescriptors else { throw .tooManyDescriptors }
    descriptors += owned
    bytes += room[..<received]
    return received
  }
}
