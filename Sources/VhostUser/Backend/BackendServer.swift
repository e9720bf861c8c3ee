/// A device on a socket, in an event loop that it may share with other devices.
public import Sockets
public import SystemPackage
public import VirtioCore

/// Serves one device to one front-end at a time; the next one is accepted when the previous one is gone.
public final class BackendServer {
  let socket: ServerSocket
  let served: ServedDevice
  let loop: EventLoop
  let report: (ServerEvent) -> Void
  var connection: BackendConnection?
  private var listening: EventLoop.Registration?
  var deviceEvents: EventLoop.Registration?
  /// The phase of a takeover, by another server or by this one.
  var takeover = Takeover.none
  /// Called when no front-end can connect any more: the only one of a connected socket is gone.
  public var finished: (() -> Void)?

  /// The default for the guest memory that one front-end may have mapped, bytes: 1 TiB.
  public static let defaultMemoryBudget: UInt64 = 1 << 40
  /// How many connections may leave a helper thread behind that is blocked by a descriptor that does not answer.
  private static let leftBehindLimit = 8

  /// - Parameters:
  ///   - memoryBudget: bytes of guest memory that a front-end may have mapped at once.
  ///   - publishesInOrder: queues without an in-flight record publish in order (see `Activation.publishesInOrder`).
  ///   - protocolFeatures: the protocol features to offer; others than `ProtocolFeatures.served` are ignored.
  ///   - report: called on the loop's thread.
  public init(
    device: any VirtioDevice, on socket: ServerSocket, in loop: EventLoop,
    memoryBudget: UInt64 = BackendServer.defaultMemoryBudget, publishesInOrder: Bool = false,
    protocolFeatures: ProtocolFeatures = .served, report: @escaping (ServerEvent) -> Void
  ) {
    self.socket = socket
    self.served = ServedDevice(
      device, memoryBudget: memoryBudget, publishesInOrder: publishesInOrder,
      protocolFeatures: protocolFeatures.intersection(.served))
    self.loop = loop
    self.report = report
  }

  /// Starts serving; the loop keeps the server alive until `close`.
  public func open() throws(Errno) {
    try attend()
    switch socket {
    case .listening: try listen()
    case .connected(let descriptor): connect(descriptor)
    }
  }

  func attend() throws(Errno) {
    deviceEvents = try loop.add(served.device.eventDescriptor) { _ in self.takeEvents() }
  }

  /// Asks every queue to stop, and accepts no more connections. The socket's file is removed with the last reference to its
  /// `Listener`.
  ///
  /// - Parameter whenClosed: called once on the loop's thread when every queue has stopped and the connection is closed, which
  ///   may be immediately.
  public func close(_ whenClosed: @escaping () -> Void) {
    finished = nil
    isClosed = true
    self.whenClosed = whenClosed
    stopListening()
    cancelTakeover()
    connection?.end(nil)
    closeIfOver()
  }

  /// After `close`: stops waiting.
  ///
  /// - Returns: queues that are abandoned because their medium does not answer.
  public func abandon() -> [Int] {
    whenClosed = nil
    return served.attended.leaveAll()
  }

  private func closeIfOver() {
    guard isClosed, connection == nil, let whenClosed else { return }
    self.whenClosed = nil
    if let deviceEvents { loop.remove(deviceEvents) }
    deviceEvents = nil
    whenClosed()
  }

  var isClosed = false
  private var whenClosed: (() -> Void)?
  /// Helper threads of earlier connections that have not returned.
  private var leftBehind: [ErrandQueue] = []
  private var hasToldOfLeftBehind = false

  private func listen() throws(Errno) {
    guard case .listening(let listener) = socket, listening == nil, !isClosed, takeover.letsIn else { return }
    listening = try loop.add(listener.socket.rawValue) { _ in self.accept(listener) }
  }

  /// While a front-end is connected, others that connect wait in the socket's own queue.
  func stopListening() {
    if let listening { loop.remove(listening) }
    listening = nil
  }

  private func accept(_ listener: Listener) {
    leftBehind.removeAll { $0.backlog == 0 }
    guard leftBehind.count < Self.leftBehindLimit else {
      if !hasToldOfLeftBehind { report(.tooManyLeftBehind(leftBehind.count)) }
      hasToldOfLeftBehind = true
      stopListening()
      return listenAgain(after: .seconds(1))
    }
    hasToldOfLeftBehind = false
    do {
      guard let descriptor = try UnixSocket.accept(listener.socket.rawValue) else { return }
      stopListening()
      connect(descriptor)
    } catch {
      // Out of descriptors or memory: the front-end stays in the socket's queue, and trying again at once would fail again.
      report(.acceptFailed(error))
      stopListening()
      listenAgain(after: .seconds(1))
    }
  }

  private func connect(_ descriptor: OwnedDescriptor) {
    report(.connected(PeerCredentials(of: descriptor.rawValue)))
    connection(on: descriptor, errands: ErrandQueue()).open()
  }

  func connection(on descriptor: OwnedDescriptor, errands: ErrandQueue) -> BackendConnection {
    let connection = BackendConnection(descriptor, served, loop, errands: errands, report: report) { self.connectionEnded() }
    self.connection = connection
    return connection
  }

  private func connectionEnded() {
    cancelTakeover()
    if let errands = connection?.errands, errands.backlog > 0 { leftBehind.append(errands) }
    connection = nil
    report(.disconnected)
    guard !isClosed else { return closeIfOver() }
    switch socket {
    case .listening: listenAgain(after: .zero)
    case .connected: finished?()
    }
  }

  func listenAgain(after delay: Duration) {
    guard delay == .zero else { return loop.after(delay) { self.listenAgain(after: .zero) } }
    do { try listen() } catch {
      report(.acceptFailed(error))
      loop.after(.seconds(1)) { self.listenAgain(after: .zero) }
    }
  }

  private func takeEvents() {
    // Without a front-end no queue runs, and the next front-end reads the configuration as it is then.
    guard let connection else {
      for event in served.attended.takeEvents() { prepared(event) }
      return
    }
    connection.deviceEventsPending()
  }
}
