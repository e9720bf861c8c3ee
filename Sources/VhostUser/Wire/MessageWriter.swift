/// Sends messages on a stream socket, and keeps what the other end has not accepted yet.
internal import CLinux
internal import SystemPackage
internal import VirtioCore

/// The sending half of a connection.
struct MessageWriter {
  private struct Waiting {
    var bytes: [UInt8]
    var descriptors: [OwnedDescriptor]
  }

  private var waiting: [Waiting] = []
  /// Bytes of the first waiting message that have been sent.
  private var sent = 0

  init() {}

  /// A writer that continues with the unsent messages of another one.
  init(unsent: [(bytes: [UInt8], descriptors: [OwnedDescriptor])]) {
    waiting = unsent.filter { !$0.bytes.isEmpty }.map { Waiting(bytes: $0.bytes, descriptors: $0.descriptors) }
  }

  /// Messages, or the rest of them, that have not been sent yet.
  var unsent: [(bytes: [UInt8], descriptors: [OwnedDescriptor])] {
    waiting.enumerated().map { index, message in
      // Descriptors went with the first byte.
      index == 0 && sent > 0 ? (Array(message.bytes[sent...]), []) : (message.bytes, message.descriptors)
    }
  }

  /// The number of messages that have not been sent completely.
  var unsentCount: Int { waiting.count }

  /// Everything has been sent.
  var isIdle: Bool { waiting.isEmpty }

  mutating func enqueue(_ message: Message) {
    waiting.append(Waiting(bytes: message.bytes, descriptors: message.descriptors))
  }

  /// Sends what the socket accepts, each message in one system call: some peers read header and payload with one plain
  /// receive each and treat a short one as a failure.
  mutating func flush(_ socket: Int32) throws(StreamError) {
    while let message = waiting.first {
      let rest = Array(message.bytes[sent...])
      // Descriptors go with the first byte, and once.
      let numbers = sent == 0 ? message.descriptors.map(\.rawValue) : []
      let result = unsafe clinux_send_with_fds(socket, rest, rest.count, numbers, numbers.count)
      if result == -Int(EINTR) { continue }
      if result == -Int(EAGAIN) { return }
      guard result >= 0 else { throw .system(Errno(rawValue: Int32(-result))) }
      sent += result
      if sent == message.bytes.count {
        waiting.removeFirst()
        sent = 0
      }
    }
  }
}
