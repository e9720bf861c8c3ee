/// Somebody who only says that he takes over.
internal import CLinux
internal import Glibc
internal import Sockets
internal import Synchronization
internal import VirtioCore

/// Says lines on a control socket, and releases every descriptor that comes back.
public final class Taker: Sendable {
  private let socket: Mutex<OwnedDescriptor?>

  public init(_ path: String) throws { socket = Mutex(try UnixSocket.connect(to: path)) }

  /// Ends the connection as seen from the other side, too: a process that another test is about to start has the descriptor for a
  /// moment, and its end would come only then.
  public func close() {
    socket.withLock { socket in
      if let socket { shutdown(socket.rawValue, Int32(SHUT_RDWR)) }
      socket = nil
    }
  }

  /// - Throws: `WaitedInVain` also when the connection ended instead.
  public func ask(_ verb: String, disk: String) throws -> String {
    guard let answer = try send(#"{"request":"\#(verb)","version":1,"disk":"\#(disk)"}"#) else {
      throw WaitedInVain(description: "the control connection ended at \(verb)")
    }
    return answer
  }

  /// - Returns: the answer; `nil` when the connection ended.
  public func send(_ line: String) throws -> String? { try say(line) ? read() : nil }

  /// - Returns: whether somebody can still hear it.
  @discardableResult
  public func say(_ line: String) throws -> Bool {
    let bytes = Array((line + "\n").utf8)
    return unsafe clinux_send_with_fds(try number, bytes, bytes.count, nil, 0) == bytes.count
  }

  /// What is said next; `nil` when the connection ended.
  public func read() throws -> String? {
    let number = try number
    var line: [UInt8] = []
    while true {
      var entry = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
      guard unsafe poll(&entry, 1, Int32(patientMilliseconds)) == 1 else {
        throw WaitedInVain(description: "waited in vain for an answer on the control socket")
      }
      var byte: UInt8 = 0
      // A plain read lets the kernel close what descriptors came.
      let count = unsafe Glibc.read(number, &byte, 1)
      if count < 0, errno == EAGAIN || errno == EINTR { continue }
      guard count == 1 else { return nil }
      if byte == UInt8(ascii: "\n") { return String(decoding: line, as: UTF8.self) }
      line.append(byte)
    }
  }

  private var number: Int32 {
    get throws {
      guard let number = socket.withLock({ $0?.rawValue }) else {
        throw WaitedInVain(description: "the control connection was closed here")
      }
      return number
    }
  }
}
