/// Serves the page of metrics over HTTP, for collectors.
internal import CLinux
internal import Glibc
public import Sockets
public import SystemPackage
internal import VirtioCore

/// Answers GET with the page as it is at that moment. Anybody who can reach the address may read it: metrics, and the names of
/// disks and images. It implements as much of HTTP/1.1 as that takes: a request's head of at most 8 KiB, one request a
/// connection, a few connections, a few seconds each, so that nothing grows with what clients send.
public final class MetricsServer {
  /// Connections at one time; further ones wait.
  private static let connectionLimit = 8
  /// The time limit of a connection, from its first byte to its last.
  private static let patience = Duration.seconds(10)

  private let socket: OwnedDescriptor
  /// Owns the file of a UNIX socket; `nil` for a TCP port.
  private let listener: Listener?
  private let loop: EventLoop
  private let page: () -> [UInt8]
  private var listening: EventLoop.Registration?
  private var connections: [ObjectIdentifier: MetricsConnection] = [:]
  private var isClosed = false

  /// Binds the address. No request is answered before `open`.
  ///
  /// - Parameter page: made again for each request, on the loop's thread.
  public init(on address: MetricsAddress, in loop: EventLoop, page: @escaping () -> [UInt8]) throws(SocketError) {
    self.loop = loop
    self.page = page
    switch address {
    case .path(let path):
      let listener = try Listener(path: path)
      self.listener = listener
      socket = listener.socket
    case .internet(let host, let port):
      listener = nil
      socket = try InternetSocket.listen(host: host, port: port)
    }
  }

  /// Begins to listen; the loop keeps the server alive until `close`.
  public func open() throws(Errno) {
    guard listening == nil, !isClosed else { return }
    listening = try loop.add(socket.rawValue) { _ in self.accept() }
  }

  /// Accepts no more connections, and closes those that are open.
  public func close() {
    isClosed = true
    stopListening()
    for connection in connections.values { connection.close() }
    listener?.removeFile()
  }

  /// Where it listens, if that is a TCP port.
  package var port: UInt16? { InternetSocket.port(of: socket.rawValue) }

  private func stopListening() {
    if let listening { loop.remove(listening) }
    listening = nil
  }

  private func accept() {
    do {
      guard let socket = try UnixSocket.accept(socket.rawValue) else { return }
      let connection = MetricsConnection(socket, loop, page) { [weak self] in self?.ended($0) }
      connections[ObjectIdentifier(connection)] = connection
      try connection.open()
      loop.after(Self.patience) { [weak connection] in connection?.close() }
      if connections.count >= Self.connectionLimit { stopListening() }
    } catch {
      // Out of descriptors: the client stays in the backlog, and another attempt at once would fail the same way.
      stopListening()
      loop.after(.seconds(1)) { [weak self] in try? self?.open() }
    }
  }

  private func ended(_ connection: MetricsConnection) {
    connections[ObjectIdentifier(connection)] = nil
    try? open()
  }
}

/// One request.
final class MetricsConnection {
  private static let headLimit = 8192

  private let socket: OwnedDescriptor
  private let loop: EventLoop
  private let page: () -> [UInt8]
  private let ended: (MetricsConnection) -> Void
  private var registration: EventLoop.Registration?
  private var head: [UInt8] = []
  private var answer: ArraySlice<UInt8> = []
  private var isAnswering = false

  init(
    _ socket: OwnedDescriptor, _ loop: EventLoop, _ page: @escaping () -> [UInt8], ended: @escaping (MetricsConnection) -> Void
  ) {
    self.socket = socket
    self.loop = loop
    self.page = page
    self.ended = ended
  }

  func open() throws(Errno) {
    registration = try loop.add(socket.rawValue) { [weak self] _ in self?.ready() }
  }

  func close() {
    guard let registration else { return }
    loop.remove(registration)
    self.registration = nil
    ended(self)
  }

  private func ready() {
    if !isAnswering { read() }
    if isAnswering { write() }
  }

  private func read() {
    var room = [UInt8](repeating: 0, count: 4096)
    while true {
      let count = unsafe Glibc.read(socket.rawValue, &room, room.count)
      if count < 0, errno == EINTR { continue }
      if count < 0, errno == EAGAIN { return }
      guard count > 0 else { return close() }
      head += room[..<count]
      guard head.count <= Self.headLimit else { return begin("431 Request Header Fields Too Large", [], isHead: false) }
      if let end = Self.endOfHead(head) { return take(head[..<end]) }
    }
  }

  /// Where the empty line is that ends a request's head; lines may end without a carriage return (RFC 9112, 2.2).
  private static func endOfHead(_ bytes: [UInt8]) -> Int? {
    var isAtStart = false
    for (index, byte) in bytes.enumerated() {
      switch byte {
      case 10:
        if isAtStart { return index }
        isAtStart = true
      case 13: break
      default: isAtStart = false
      }
    }
    return nil
  }

  private func take(_ head: ArraySlice<UInt8>) {
    let line = String(decoding: head.prefix { $0 != 10 && $0 != 13 }, as: UTF8.self)
    let words = line.split(separator: " ", omittingEmptySubsequences: false)
    guard words.count == 3, words[2].hasPrefix("HTTP/1.") else { return begin("400 Bad Request", [], isHead: false) }
    let isHead = words[0] == "HEAD"
    guard isHead || words[0] == "GET" else { return begin("405 Method Not Allowed", [("Allow", "GET, HEAD")], isHead: false) }
    let path = words[1].prefix { $0 != "?" }
    guard path == "/metrics" || path == "/" else { return begin("404 Not Found", [], isHead: isHead) }
    begin("200 OK", [("Content-Type", Exposition.contentType)], page(), isHead: isHead)
  }

  private func begin(_ status: String, _ fields: [(String, String)], _ body: [UInt8] = [], isHead: Bool) {
    let fields = fields + [("Content-Length", "\(body.count)"), ("Connection", "close")]
    let text = "HTTP/1.1 \(status)\r\n" + fields.map { "\($0.0): \($0.1)\r\n" }.joined() + "\r\n"
    answer = (Array(text.utf8) + (isHead ? [] : body))[...]
    isAnswering = true
    head = []
    guard let registration else { return }
    do { try loop.change(registration, .writable) } catch { close() }
  }

  private func write() {
    while !answer.isEmpty {
      let count = unsafe answer.withUnsafeBytes {
        unsafe Glibc.send(socket.rawValue, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      if count < 0, errno == EINTR { continue }
      if count < 0, errno == EAGAIN { return }
      guard count > 0 else { return close() }
      answer = answer.dropFirst(count)
    }
    // The reader sees the end of the page before that of the connection.
    _ = shutdown(socket.rawValue, Int32(SHUT_WR))
    close()
  }
}
