/// A device on a socket, in an event loop that it may share with any number of others.
public import SystemPackage
public import VirtioCore

/// Serves one device to one front-end at a time; the next one is let in when the one before is gone.
public final class BackendServer {
  private let socket: ServerSocket
  private let served: ServedDevice
  private let loop: EventLoop
  private let report: (ServerEvent) -> Void
  private var connection: BackendConnection?
  private var listening: EventLoop.Registration?
  private var deviceEvents: EventLoop.Registration?
  /// Called when nobody can come any more: the one front-end of a connected socket has gone.
  public var finished: (() -> Void)?

  /// - Parameter report: called on the loop's thread.
  public init(
    device: any VirtioDevice, on socket: ServerSocket, in loop: EventLoop, report: @escaping (ServerEvent) -> Void
  ) {
    self.socket = socket
    self.served = ServedDevice(device)
    self.loop = loop
    self.report = report
  }

  /// Begins to serve; the loop keeps the server alive until `close`.
  public func open() throws(Errno) {
    deviceEvents = try loop.add(served.device.eventDescriptor) { _ in self.takeEvents() }
    switch socket {
    case .listening: try listen()
    case .connected(let descriptor): connect(descriptor)
    }
  }

  /// Drains and stops every queue, closes the connection, and lets nobody in any more. The socket's file goes with the last
  /// reference to its `Listener`.
  public func close() {
    finished = nil
    isClosed = true
    connection?.end(nil)
    stopListening()
    if let deviceEvents { loop.remove(deviceEvents) }
    deviceEvents = nil
  }

  private var isClosed = false

  private func listen() throws(Errno) {
    guard case .listening(let listener) = socket, listening == nil, !isClosed else { return }
    listening = try loop.add(listener.socket.rawValue) { _ in self.accept(listener) }
  }

  /// Whoever comes while a front-end is connected waits in the socket's own queue.
  private func stopListening() {
    if let listening { loop.remove(listening) }
    listening = nil
  }

  private func accept(_ listener: Listener) {
    do {
      guard let descriptor = try UnixSocket.accept(listener.socket.rawValue) else { return }
      stopListening()
      connect(descriptor)
    } catch {
      // Out of descriptors or memory: the caller stays in the queue, and asking again at once would find the same.
      report(.acceptFailed(error))
      stopListening()
      listenAgain(after: .seconds(1))
    }
  }

  private func connect(_ descriptor: OwnedDescriptor) {
    report(.connected)
    let connection = BackendConnection(descriptor, served, loop, report: report) { self.connectionEnded() }
    self.connection = connection
    connection.open()
  }

  private func connectionEnded() {
    connection = nil
    report(.disconnected)
    switch socket {
    case .listening: listenAgain(after: .zero)
    case .connected: finished?()
    }
  }

  private func listenAgain(after delay: Duration) {
    guard delay == .zero else { return loop.after(delay) { self.listenAgain(after: .zero) } }
    do { try listen() } catch {
      report(.acceptFailed(error))
      loop.after(.seconds(1)) { self.listenAgain(after: .zero) }
    }
  }

  private func takeEvents() {
    // Without a front-end no queue runs, and the next one reads the configuration as it is then.
    guard let connection else {
      _ = served.attended.takeEvents()
      return
    }
    connection.deviceEventsPending()
  }
}
