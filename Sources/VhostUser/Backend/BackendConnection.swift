/// The shell around a session: bytes from a front-end go in; actions on a device and bytes to the front-end come out.
internal import CLinux
internal import Sockets
internal import SystemPackage
internal import VirtioCore

/// The connection of one front-end, in an event loop. It never blocks: while a queue stops, or a descriptor is examined,
/// nothing more is read from this front-end, and all other connections continue.
final class BackendConnection {
  /// After this many messages in a row, other users of the loop get their turn.
  private static let messagesPerTurn = 16
  /// With more descriptors than this waiting to be closed, no more are accepted.
  private static let errandBacklog = 64
  /// How long an operation on one of the front-end's descriptors may take.
  private static let errandLimit = Duration.seconds(10)
  /// After this time a report says that queues have not stopped yet.
  private static let stopNotice = Duration.seconds(5)
  /// How long a ring may wait for memory before that is reported: front-ends that describe rings first send the memory right
  /// after.
  private static let memoryNotice = Duration.seconds(2)

  /// The event that has to come before the session continues.
  enum Awaited: Equatable {
    case nothing
    case queue(Int)
    /// Queues that still use translations that were invalidated.
    case withdrawals(Set<Int>)
    /// A descriptor is being examined.
    case errand
    /// Descriptors are being closed.
    case backlog
  }

  let socket: OwnedDescriptor
  /// The front-end's end of the socket, which none of its descriptors may be.
  private let otherEnd: OtherEnd
  let served: ServedDevice
  let loop: EventLoop
  let report: (ServerEvent) -> Void
  /// Called once, when the connection is over and every queue is stopped.
  private let ended: () -> Void
  /// Runs operations that the front-end's descriptors can block.
  let errands: ErrandQueue
  var session: BackendSession
  var reader: MessageReader
  var writer = MessageWriter()
  var registration: EventLoop.Registration?
  var interest = EventLoop.Interest.readable
  var channel: (socket: OwnedDescriptor, writer: MessageWriter)?
  /// Set while the front-end does not read the messages on the channel.
  var channelRegistration: EventLoop.Registration?
  /// Questions were dropped, because the front-end did not read the messages before them.
  var hasDroppedQuestions = false
  /// A timer checks whether translations come; the report that one does not has been made.
  var looksForTranslations = false
  var hasToldOfTranslations = false
  var awaited = Awaited.nothing
  /// Another server is about to continue this connection.
  var standstill: Standstill?
  /// We are about to continue the connection of another server.
  var adoption: Adoption?
  private var errandStart = ContinuousClock.now
  private var errandTimer: EventLoop.Timer?
  private var memoryTimer: EventLoop.Timer?
  private var stopTimer: EventLoop.Timer?
  private var hasLookedForMemory = false
  var isOver = false
  var hasEnded = false

  init(
    _ socket: OwnedDescriptor, _ served: ServedDevice, _ loop: EventLoop, errands: ErrandQueue = ErrandQueue(),
    report: @escaping (ServerEvent) -> Void, ended: @escaping () -> Void
  ) {
    self.socket = socket
    self.errands = errands
    self.otherEnd = OtherEnd(of: socket.rawValue)
    self.served = served
    self.loop = loop
    self.report = report
    self.ended = ended
    self.session = BackendSession(served.description)
    self.reader = MessageReader(closingWith: errands)
  }

  /// Starts to read. The loop keeps the connection alive until it has ended.
  func open() {
    interest = .readable
    do {
      registration = try loop.add(socket.rawValue) { interest in self.ready(interest) }
    } catch {
      end(.connectionFailed(.system(error)))
    }
  }

  /// Asks every queue to stop. The socket is closed, and the connection is over, when they have.
  ///
  /// - Parameter event: the reason, if it is worth reporting.
  func end(_ event: ServerEvent?) {
    guard !isOver else { return }
    isOver = true
    if let event { report(event) }
    if let registration { loop.remove(registration) }
    registration = nil
    forgetChannel()
    for timer in [errandTimer, memoryTimer].compactMap(\.self) { loop.cancel(timer) }
    served.attended.stopAll()
    finish()
    guard !hasEnded else { return }
    stopTimer = loop.timer(after: Self.stopNotice) { [weak self] in
      guard let self, !hasEnded else { return }
      report(.stillStopping(served.attended.busyQueues))
    }
  }

  private func finish() {
    guard isOver, !hasEnded, served.attended.isAtRest else { return }
    hasEnded = true
    if let stopTimer { loop.cancel(stopTimer) }
    // Everything that belongs to the front-end is released now, by the helper thread.
    session = BackendSession(served.description)
    reader = MessageReader()
    channel = nil
    ended()
  }

  /// The device has events.
  func deviceEventsPending() {
    for event in served.attended.takeEvents() { take(event) }
    isOver ? finish() : goOn()
  }

  private func take(_ event: DeviceEvent) {
    switch event {
    case .started(let queue):
      report(.queueStarted(queue))
      adopted(queue, nil)
      answer(queue) { $0.started(queue: queue, failure: nil) }
    case .notStarted(let queue, let error):
      adopted(queue, error)
      answer(queue) { $0.started(queue: queue, failure: error) }
    case .stopped(let queue, let position):
      report(.queueStopped(queue))
      if let standstill, standstill.rings.contains(queue) { session.stopped(queue: queue, position: position) }
      answer(queue) { $0.stopped(queue: queue, position: position) }
    case .queueFailed(let queue, let error):
      report(.queueFailed(queue: queue, error))
      session.queueFailed(queue)
    case .configurationChanged: if !isOver { session.configurationChanged() }
    case .translationMissed(let queue, let miss): takeMiss(queue, miss)
    case .withdrawn(let queue): takeWithdrawal(queue)
    case .notice(let text): report(.deviceNotice(text))
    case .prepared, .notPrepared: break
    }
  }

  /// Events of queues concern the session only while the connection lasts.
  private func answer(_ queue: Int, _ tell: (inout BackendSession) -> Void) {
    guard !isOver, awaited == .queue(queue) else { return }
    awaited = .nothing
    tell(&session)
  }

  // MARK: Bytes

  private func ready(_ found: EventLoop.Interest) {
    // Nothing is read now, so this can only be the end of the socket.
    if found.contains(.readable), !interest.contains(.readable) { return end(nil) }
    goOn()
    do {
      // While the front-end does not read its replies, nothing more is read from it.
      for _ in 0..<Self.messagesPerTurn where canRead {
        switch try reader.read(socket.rawValue) {
        case .message(let message):
          report(.received(request: message.request, size: message.payload.count, descriptors: message.descriptors.count))
          session.receive(message)
          goOn()
        case .nothingYet:
          // A held copy of the front-end's own end: its disconnect could not be detected while the rest is awaited.
          if reader.unread?.descriptors.contains(where: { otherEnd.isHeld(by: $0.rawValue) }) == true { end(.ownEndReceived) }
          return
        case .ended:
          end(nil)
          return
        }
      }
    } catch {
      end(.connectionFailed(error))
    }
  }

  private var canRead: Bool { !isOver && awaited == .nothing && standstill == nil && adoption == nil && writer.isIdle }

  /// Does what is possible without waiting, sends what is due, and registers for what comes next.
  func goOn() {
    guard !isOver else { return }
    performEffects()
    guard !isOver else { return }
    do {
      // Messages that were handed to the next server are not sent here as well.
      if standstill?.isComplete != true { try writer.flush(socket.rawValue) }
      comeToStandstill()
      if awaited == .nothing, errands.backlog > Self.errandBacklog { waitForBacklog() }
      try listen()
    } catch {
      end(.connectionFailed(error))
    }
  }

  private func listen() throws(StreamError) {
    let wanted: EventLoop.Interest = !writer.isIdle ? .writable : awaited == .nothing ? .readable : []
    guard let registration, wanted != interest else { return }
    do { try loop.change(registration, wanted) } catch { throw .system(error) }
    interest = wanted
  }

  // MARK: Actions

  private func performEffects() {
    while !isOver, awaited == .nothing, let effect = session.nextEffect() { perform(effect) }
    if !hasLookedForMemory, !isOver, !session.ringsWithoutMemory.isEmpty { lookForMemory() }
    lookForTranslations()
  }

  func perform(_ effect: Effect) {
    let device = served.device
    switch effect {
    case .reply(let message): writer.enqueue(message)
    case .negotiate(let features):
      let replaces = served.replacesChoice(features)
      let isAccepted = served.negotiate(features)
      session.negotiated(accepted: isAccepted, replaces: replaces)
      if isAccepted { report(.negotiated(features, session.protocolFeatures)) }
    case .map(let plan): run({ plan.carryOut() }, then: { $0.session.mapped($1) })
    case .mapLog(let plan): run({ plan.carryOut() }, then: { $0.session.logMapped($1) })
    case .createInflight(let queueCount, let queueSize, let isPacked):
      // Our own file, in memory: this cannot block.
      session.inflightCreated(InflightPlan.create(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked))
    case .mapInflight(let plan): run({ plan.carryOut() }, then: { $0.session.inflightMapped($1) })
    case .forgetInflight(let memory, let queue):
      if memory.isInMemory {
        memory.forget(queue: queue)
      } else {
        run({ memory.forget(queue: queue) }, then: { _, _ in })
      }
    case .examine(let examination):
      run({ [otherEnd] in examination.carryOut(onConnectionTo: otherEnd) }, then: { $0.session.examined($1) })
    case .start(let activation):
      awaited = .queue(activation.queue)
      served.attended.start(activation)
    case .stop(let queue):
      if served.attended.stop(queue: queue) {
        awaited = .queue(queue)
      } else {
        session.stopped(queue: queue, position: nil)
      }
    case .translate(let queue, let translations, let refused):
      device.translate(queue: queue, by: translations, refused: refused)
    case .withdraw(let queues, let withdrawal):
      awaited = .withdrawals(Set(queues))
      for queue in queues { device.withdraw(queue: queue, withdrawal) }
    case .replaceCall(let queue, let call): device.replaceCall(queue: queue, call)
    case .replaceFailure(let queue, let failure): device.replaceFailure(queue: queue, failure)
    case .signal(let sink): errands.run { sink.signal() }
    case .readConfiguration(let offset, let count):
      session.configurationRead(device.readConfiguration(at: offset, count: count))
    case .writeConfiguration(let offset, let bytes, let restores):
      session.configurationWritten(served.write(bytes, at: offset, restores: restores))
    case .resetDevice:
      served.reset()
      device.forgetDriver()
    case .openChannel(let socket): openChannel(socket)
    case .send(let message): send(message)
    case .refused(let request, let refusal): report(.messageRefused(request: request, refusal))
    case .queueRefused(let queue, let refusal): report(.queueRefused(queue: queue, refusal))
    case .close(let request, let refusal): end(.connectionEnded(request: request, refusal))
    }
  }

  // MARK: Waiting for a front-end's descriptors

  /// Lets a helper thread do something that a descriptor of the front-end can block, and continues when it is done.
  private func run<Outcome: Sendable>(
    _ errand: @escaping @Sendable () -> Outcome, then tell: @escaping (BackendConnection, Outcome) -> Void
  ) {
    beginErrand(.errand)
    // Weak, so that a helper thread that never returns does not keep the connection alive.
    loop.perform(on: errands, errand) { [weak self] outcome in
      guard let self, !isOver, awaited == .errand else { return }
      awaited = .nothing
      tell(self, outcome)
      goOn()
    }
  }

  /// Waits until surplus descriptors are closed before more are accepted.
  private func waitForBacklog() {
    beginErrand(.backlog)
    loop.whenDone(errands) { [weak self] in self?.backlogIsGone() }
  }

  private func backlogIsGone() {
    guard !isOver, awaited == .backlog else { return }
    awaited = .nothing
    goOn()
  }

  private func beginErrand(_ kind: Awaited) {
    awaited = kind
    errandStart = .now
    if errandTimer == nil { watchErrands() }
  }

  /// There is one timer, whatever the number of errands.
  private func watchErrands() {
    errandTimer = loop.timer(after: Self.errandLimit - (ContinuousClock.now - errandStart)) { [weak self] in
      guard let self else { return }
      errandTimer = nil
      guard !isOver, awaited == .errand || awaited == .backlog else { return }
      guard ContinuousClock.now - errandStart < Self.errandLimit else { return end(.descriptorsDoNotAnswer) }
      watchErrands()
    }
  }

  // MARK: Memory that does not come

  /// Done once per connection.
  private func lookForMemory() {
    hasLookedForMemory = true
    memoryTimer = loop.timer(after: Self.memoryNotice) { [weak self] in
      guard let self, !isOver, awaited == .nothing else { return }
      session.memoryIsMissing()
      goOn()
    }
  }
}
