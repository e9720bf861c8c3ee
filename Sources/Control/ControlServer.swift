/// The server's end of a control socket.
public import Sockets
public import SystemPackage
internal import VirtioCore

/// Listens for operators, in an event loop. Only the process's own user and root may connect.
public final class ControlServer {
  /// The most connections at one time; further ones wait.
  private static let connectionLimit = 16

  public let listener: Listener
  private let loop: EventLoop
  private let report: (ControlEvent) -> Void
  private let take: (ControlLine, ControlConnection) -> Void
  private var listening: EventLoop.Registration?
  private var connections: [ObjectIdentifier: ControlConnection] = [:]
  private var isClosed = false

  /// - Parameters:
  ///   - report: called on the loop's thread.
  ///   - take: called with each line that is received. It is answered with `ControlConnection.answer`, now or later; before
  ///     that, nothing more is read from that connection.
  public init(
    on listener: Listener, in loop: EventLoop, report: @escaping (ControlEvent) -> Void,
    take: @escaping (ControlLine, ControlConnection) -> Void
  ) {
    self.listener = listener
    self.loop = loop
    self.report = report
    self.take = take
  }

  /// Starts listening; the loop keeps the server alive until `close`.
  public func open() throws(Errno) {
    guard listening == nil, !isClosed else { return }
    listening = try loop.add(listener.socket.rawValue) { _ in self.accept() }
  }

  /// Accepts no more connections, and closes the existing ones.
  public func close() {
    isClosed = true
    stopListening()
    for connection in connections.values { connection.close() }
  }

  private func stopListening() {
    if let listening { loop.remove(listening) }
    listening = nil
  }

  private func accept() {
    do {
      guard let socket = try UnixSocket.accept(listener.socket.rawValue) else { return }
      guard let peer = PeerCredentials(of: socket.rawValue), peer.isOurs else {
        return report(.refused(PeerCredentials(of: socket.rawValue)))
      }
      let connection = ControlConnection(socket, peer, loop, take: take) { [weak self] connection, error in
        self?.ended(connection, error)
      }
      connections[ObjectIdentifier(connection)] = connection
      try connection.open()
      if connections.count >= Self.connectionLimit { stopListening() }
    } catch {
      // Out of descriptors: the client stays in the socket's queue, and trying again at once would fail again.
      report(.acceptFailed(error))
      stopListening()
      loop.after(.seconds(1)) { [weak self] in self?.listenAgain() }
    }
  }

  private func ended(_ connection: ControlConnection, _ error: ControlError?) {
    connections[ObjectIdentifier(connection)] = nil
    if let error { report(.connectionFailed(connection.peer, error)) }
    listenAgain()
  }

  private func listenAgain() {
    do { try open() } catch { report(.acceptFailed(error)) }
  }
}

/// An event of a control socket.
public enum ControlEvent: Hashable, Sendable, CustomStringConvertible {
  /// A client of another user, who may not connect.
  case refused(PeerCredentials?)
  case acceptFailed(Errno)
  case connectionFailed(PeerCredentials, ControlError)

  public var description: String {
    switch self {
    case .refused(let peer):
      "\(peer.map { "\($0)" } ?? "a client") was refused at the control socket: only this server's user and root may connect"
    case .acceptFailed(let error): "no connection can be accepted at the control socket: \(error); trying again in a second"
    case .connectionFailed(let peer, let error): "the control connection of \(peer) is closed: \(error)"
    }
  }
}

/// One operator's connection.
public final class ControlConnection {
  public let peer: PeerCredentials
  /// Called once when the connection is closed, for owners of state that belongs to it.
  public var whenEnded: (() -> Void)?
  private let socket: OwnedDescriptor
  private let loop: EventLoop
  private let take: (ControlLine, ControlConnection) -> Void
  private let ended: (ControlConnection, ControlError?) -> Void
  private var reader = ControlReader()
  private var writer = ControlWriter()
  private var registration: EventLoop.Registration?
  private var interest = EventLoop.Interest.readable
  /// A line was read and has not been answered yet.
  private var owesAnswer = false
  private var isOver = false

  init(
    _ socket: OwnedDescriptor, _ peer: PeerCredentials, _ loop: EventLoop,
    take: @escaping (ControlLine, ControlConnection) -> Void, ended: @escaping (ControlConnection, ControlError?) -> Void
  ) {
    self.socket = socket
    self.peer = peer
    self.loop = loop
    self.take = take
    self.ended = ended
  }

  func open() throws(Errno) { registration = try loop.add(socket.rawValue) { [weak self] in self?.ready($0) } }

  /// Answers the line that was taken last.
  ///
  /// - Returns: false if the connection is closed. True does not prove that the answer is read.
  @discardableResult
  public func answer(_ line: ControlLine) -> Bool {
    guard !isOver else { return false }
    writer.enqueue(line)
    owesAnswer = false
    do {
      try writer.flush(socket.rawValue)
      try listen()
    } catch {
      close(error)
      return false
    }
    return true
  }

  /// Closes the connection.
  public func close() { close(nil) }

  private func close(_ error: ControlError?) {
    guard !isOver else { return }
    isOver = true
    if let registration { loop.remove(registration) }
    registration = nil
    let whenEnded = whenEnded
    self.whenEnded = nil
    whenEnded?()
    ended(self, error)
  }

  private func ready(_ found: EventLoop.Interest) {
    // Nothing is read now, so this can only be the end of the socket.
    if found.contains(.readable), !interest.contains(.readable) { return close(nil) }
    do {
      try writer.flush(socket.rawValue)
      while !isOver, !owesAnswer, writer.isIdle {
        switch try reader.read(socket.rawValue) {
        case .line(let line):
          owesAnswer = true
          take(line, self)
        case .nothingYet: return try listen()
        case .ended: return close(nil)
        }
      }
      try listen()
    } catch { close(error) }
  }

  private func listen() throws(ControlError) {
    let wanted: EventLoop.Interest = !writer.isIdle ? .writable : owesAnswer ? [] : .readable
    guard let registration, wanted != interest else { return }
    do { try loop.change(registration, wanted) } catch { throw .socket("\(error)") }
    interest = wanted
  }
}
