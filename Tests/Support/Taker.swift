/// A client that only pretends to take over.
internal import CLinux
internal import Glibc
internal import Sockets
internal import Synchronization
internal import VirtioCore

/// Sends lines on a control socket, and closes every descriptor that it receives.
public final class Taker: Sendable {
  private let socket: Mutex<OwnedDescriptor?>

  public init(_ path: String) throws { socket = Mutex(try UnixSocket.connect(to: path)) }

  /// Ends the connection for the other side at once: a process that another test is starting may have inherited the descriptor,
  /// and would keep the connection open for a moment.
  public func close() {
    socket.withLock { socket in
      if let socket { shutdown(socket.rawValue, Int32(SHUT_RDWR)) }
      socket = nil
    }
  }

  /// - Throws: `WaitedInVain`, also if the connection has ended.
  public func ask(_ verb: String, disk: String) throws -> String {
    guard let answer = try send(#"{"request":"\#(verb)","version":1,"disk":"\#(disk)"}"#) else {
      throw WaitedInVain(description: "the control connection ended at \(verb)")
    }
    return answer
  }

  /// - Returns: the answer; `nil` if the connection has ended.
  public func send(_ line: String) throws -> String? { try say(line) ? read() : nil }

  /// - Returns: whether the line could be sent.
  @discardableResult
  public func say(_ line: String) throws -> Bool {
    let bytes = Array((line + "\n").utf8)
    return unsafe clinux_send_with_fds(try number, bytes, bytes.count, nil, 0) == bytes.count
  }

  /// Reads the next line; `nil` if the connection has ended.
  public func read() throws -> String? {
    let number = try number
    var line: [UInt8] = []
    while true {
      var entry = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
      guard unsafe poll(&entry, 1, Int32(patientMilliseconds)) == 1 else {
        throw WaitedInVain(description: "timed out waiting for an answer on the control socket")
      }
      var byte: UInt8 = 0
      // A plain read makes the kernel close any descriptors received.
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
        throw WaitedInVain(description: "the control connection was closed on this side")
      }
      return number
    }
  }
}
