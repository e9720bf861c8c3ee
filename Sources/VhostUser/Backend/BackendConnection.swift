/// The shell around a session: bytes from a front-end in, deeds on a device and bytes back out.
internal import VirtioCore

/// One front-end's connection, in an event loop.
final class BackendConnection {
  /// A front-end that talks without pause leaves the loop to others after so many messages.
  private static let messagesPerTurn = 16

  private let socket: OwnedDescriptor
  private let served: ServedDevice
  private let loop: EventLoop
  private let report: (ServerEvent) -> Void
  /// Called once, when the connection is over and every queue is stopped.
  private let ended: () -> Void
  private var session: BackendSession
  private var reader = MessageReader()
  private var writer = MessageWriter()
  private var registration: EventLoop.Registration?
  private var channel: (socket: OwnedDescriptor, writer: MessageWriter)?
  private var isOver = false

  init(
    _ socket: OwnedDescriptor, _ served: ServedDevice, _ loop: EventLoop, report: @escaping (ServerEvent) -> Void,
    ended: @escaping () -> Void
  ) {
    self.socket = socket
    self.served = served
    self.loop = loop
    self.report = report
    self.ended = ended
    self.session = BackendSession(served.description)
  }

  /// Begins to read. The loop keeps the connection alive until it is over.
  func open() {
    do {
      registration = try loop.add(socket.rawValue) { interest in self.ready(interest) }
    } catch {
      end(.connectionFailed(.system(error)))
    }
  }

  /// Stops every queue, then closes the socket.
  ///
  /// - Parameter event: why, when that is worth telling.
  func end(_ event: ServerEvent?) {
    guard !isOver else { return }
    isOver = true
    if let event { report(event) }
    session.end()
    while let effect = session.nextEffect() { perform(effect) }
    if let registration { loop.remove(registration) }
    registration = nil
    ended()
  }

  /// The device has something to say.
  func deviceEventsPending() {
    takeDeviceEvents()
    performEffects()
  }

  private func takeDeviceEvents() {
    for event in served.attended.takeEvents() {
      switch event {
      case .queueFailed(let queue, let error):
        report(.queueFailed(queue: queue, error))
        session.queueFailed(queue)
      case .configurationChanged: session.configurationChanged()
      case .started, .notStarted, .stopped: break
      case .notice(let text): report(.deviceNotice(text))
      }
    }
  }

  // MARK: Bytes

  private func ready(_ interest: EventLoop.Interest) {
    do {
      if !writer.isIdle { try flush() }
      // While the front-end does not take its replies, nothing more is read from it.
      for _ in 0..<Self.messagesPerTurn where writer.isIdle && !isOver {
        switch try reader.read(socket.rawValue) {
        case .message(let message):
          report(.received(request: message.request, size: message.payload.count, descriptors: message.descriptors.count))
          session.receive(message)
          performEffects()
          try flush()
        case .nothingYet: return
        case .ended:
          end(nil)
          return
        }
      }
    } catch {
      end(.connectionFailed(error))
    }
  }

  private func flush() throws(StreamError) {
    let wasIdle = writer.isIdle
    try writer.flush(socket.rawValue)
    guard let registration, !isOver else { return }
    do {
      if !writer.isIdle {
        try loop.change(registration, .writable)
      } else if !wasIdle {
        try loop.change(registration, .readable)
      }
    } catch {
      throw .system(error)
    }
  }

  // MARK: Deeds

  private func performEffects() {
    while !isOver, let effect = session.nextEffect() { perform(effect) }
  }

  private func perform(_ effect: Effect) {
    let device = served.device
    switch effect {
    case .reply(let message): writer.enqueue(message)
    case .negotiate(let features): session.negotiated(accepted: served.negotiate(features))
    case .map(let plan):
      do { session.mapped(.success(try plan.carryOut())) } catch { session.mapped(.failure(error)) }
    case .start(let activation):
      do {
        try served.attended.startAndWait(activation)
        report(.queueStarted(activation.queue))
        session.started(queue: activation.queue, failure: nil)
      } catch {
        session.started(queue: activation.queue, failure: error)
      }
    case .stop(let queue):
      let position = served.attended.stopAndWait(queue: queue)
      // A failure that was not heard of yet belongs to this run of the queue, not to the next.
      takeDeviceEvents()
      session.stopped(queue: queue, position: position)
      report(.queueStopped(queue))
    case .replaceCall(let queue, let call): device.replaceCall(queue: queue, call)
    case .replaceFailure(let queue, let failure): device.replaceFailure(queue: queue, failure)
    case .signal(let sink): sink.signal()
    case .readConfiguration(let offset, let count):
      session.configurationRead(device.readConfiguration(at: offset, count: count))
    case .writeConfiguration(let offset, let bytes, let restores):
      session.configurationWritten(served.write(bytes, at: offset, restores: restores))
    case .resetDevice: served.reset()
    case .openChannel(let socket):
      UnixSocket.adopt(socket.rawValue)
      channel = (socket, MessageWriter())
    case .send(let message): send(message)
    case .refused(let request, let refusal): report(.messageRefused(request: request, refusal))
    case .queueRefused(let queue, let refusal): report(.queueRefused(queue: queue, refusal))
    case .close(let request, let refusal): end(.connectionEnded(request: request, refusal))
    }
  }

  /// No answer is asked for, so that nobody ever waits here for a front-end that waits for us.
  private func send(_ message: Message) {
    guard var channel else { return }
    channel.writer.enqueue(message)
    do {
      try channel.writer.flush(channel.socket.rawValue)
      self.channel = channel
    } catch {
      self.channel = nil
    }
  }
}
