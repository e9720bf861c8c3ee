/// The takeover of one connection: how it stops in one process and continues in another.
internal import Sockets
internal import VirtioCore

extension BackendConnection {
  /// The state of stopping for the next server.
  struct Standstill {
    /// Rings that ran.
    var rings: Set<Int> = []
    /// The rings have been asked to stop.
    var hasBegun = false
    /// Called once when everything has stopped.
    var whenStill: (() -> Void)?
    /// Everything has stopped, and unsent messages may already be with the next server.
    var isComplete = false
    /// It was cancelled before it was complete: rings that have stopped by then continue.
    var isCancelled = false
  }

  /// Queues that are started for a connection that still belongs to another server.
  struct Adoption {
    var rings: Set<Int>
    var waiting: Set<Int>
    /// Rings that cannot be started yet, because they are not translated.
    var later: Set<Int> = []
    var failure: TakeoverError?
    /// Called once when all have answered.
    var whenHeld: ((TakeoverError?) -> Void)?
  }

  // MARK: The old server

  /// Stops between two messages: reads nothing more, and stops every running queue.
  ///
  /// - Parameter whenStill: called when that is done; never, if the connection ends before.
  func standStill(then whenStill: @escaping () -> Void) {
    standstill = Standstill(whenStill: whenStill)
    // Not even for the end of the connection: the next server will notice that, too.
    if let registration { loop.remove(registration) }
    registration = nil
    goOn()
  }

  /// Stops as far as the current message permits.
  func comeToStandstill() {
    guard var standing = standstill, awaited == .nothing, session.isBetweenMessages else { return }
    if !standing.hasBegun {
      standing.hasBegun = true
      let running = session.rings.indices.filter { session.rings[$0].isRunning }
      standing.rings = Set(running.filter { served.attended.stop(queue: $0) })
      standstill = standing
    }
    guard served.attended.isAtRest else { return }
    if standing.isCancelled { return goOnAgain() }
    guard let still = standing.whenStill else { return }
    standing.whenStill = nil
    standing.isComplete = true
    standstill = standing
    still()
  }

  /// No other server continues the connection: everything that was stopped continues here.
  ///
  /// - Parameter fromMemory: another server may have served the rings in the meantime, and is gone.
  /// - Returns: false if it cannot be told what that server did, so that nothing can continue.
  @discardableResult
  func goOn(fromMemory: Bool) -> Bool {
    guard var standing = standstill, !isOver else { return true }
    if fromMemory, !session.recover(standing.rings) { return false }
    guard standing.hasBegun, served.attended.isAtRest else {
      standing.isCancelled = true
      standing.whenStill = nil
      standstill = standing
      goOn()
      return true
    }
    goOnAgain()
    return true
  }

  private func goOnAgain() {
    guard let standing = standstill else { return }
    standstill = nil
    session.goOn(with: standing.rings.sorted())
    open()
    goOn()
  }

  /// Another server has the connection now: nothing more is sent or stopped here.
  func letGo() {
    if let registration { loop.remove(registration) }
    registration = nil
    forgetChannel()
    isOver = true
    hasEnded = true
    standstill = nil
    session = BackendSession(served.description)
    reader = MessageReader()
    channel = nil
  }

  /// The state that the next server needs to continue.
  func state(_ list: inout DescriptorList) -> ConnectionState {
    var state = ConnectionState(
      socket: list.add(socket), unread: nil, unsent: [], channel: nil, protocolFeatures: 0, features: nil, status: 0,
      memory: [], log: nil, logsBuffers: false, inflight: nil, owesConfigurationChange: false, rings: [])
    if let unread = reader.unread {
      state.unread = .init(bytes: unread.bytes, descriptors: unread.descriptors.map { list.add($0) })
    }
    for message in writer.unsent {
      state.unsent.append(.init(bytes: message.bytes, descriptors: message.descriptors.map { list.add($0) }))
    }
    // If the front-end has not read the previous message, no more are sent, except questions that queues wait for.
    if let channel, channel.writer.isIdle || session.isTranslated {
      state.channel = list.add(channel.socket)
      if !channel.writer.isIdle {
        state.channelUnsent = channel.writer.unsent.map {
          .init(bytes: $0.bytes, descriptors: $0.descriptors.map { list.add($0) })
        }
      }
    }
    let running = standstill?.rings ?? Set(session.rings.indices.filter { session.rings[$0].isRunning })
    session.fill(&state, &list, running: running)
    return state
  }

  // MARK: The new server

  /// Continues a connection that another server has stopped: its queues are started held, and nothing is read before `release`.
  ///
  /// - Parameter whenHeld: called when all queues have answered, with the reason if it failed; after a failure only
  ///   `abandonAdoption` may follow.
  func adopt(
    _ session: BackendSession, _ restoration: SessionRestoration, then whenHeld: @escaping (TakeoverError?) -> Void
  ) {
    adoption = Adoption(rings: Set(restoration.running), waiting: [], whenHeld: whenHeld)
    do throws(TakeoverError) {
      try restore(session, restoration)
      for queue in restoration.running { try start(queue) }
    } catch { adoption?.failure = error }
    tellWhenHeld()
  }

  private func restore(_ session: BackendSession, _ restoration: SessionRestoration) throws(TakeoverError) {
    self.session = session
    let (state, list) = (restoration.state, restoration.list)
    if let unread = state.unread {
      var descriptors: [OwnedDescriptor] = []
      for place in unread.descriptors { descriptors.append(try list.descriptor(place)) }
      do { reader = try MessageReader(bytes: unread.bytes, descriptors: descriptors, closingWith: errands) } catch {
        throw .refused("\(error)")
      }
    }
    var unsent: [(bytes: [UInt8], descriptors: [OwnedDescriptor])] = []
    for message in state.unsent {
      var descriptors: [OwnedDescriptor] = []
      for place in message.descriptors { descriptors.append(try list.descriptor(place)) }
      unsent.append((message.bytes, descriptors))
    }
    writer = MessageWriter(unsent: unsent)
    let untold = (state.channelUnsent ?? []).map { (bytes: $0.bytes, descriptors: [OwnedDescriptor]()) }
    channel = try list.optional(state.channel).map { ($0, MessageWriter(unsent: untold)) }
  }

  private func start(_ queue: Int) throws(TakeoverError) {
    // Its translations may be among those that were dropped: it starts when it has been translated again.
    if session.isTranslated, session.untranslated(queue) != nil {
      adoption?.later.insert(queue)
      return
    }
    let activation: Activation?
    do { activation = try session.activation(of: queue) } catch { throw .refused("\(error)") }
    guard var activation else { throw .invalid("queue \(queue) runs without all that it needs") }
    activation.isHeld = true
    adoption?.waiting.insert(queue)
    served.attended.start(activation)
  }

  /// The device has answered the start of a queue.
  func adopted(_ queue: Int, _ failure: QueueError?) {
    guard adoption?.waiting.remove(queue) != nil else { return }
    if let failure {
      adoption?.failure = .queue(queue, failure)
    } else {
      session.rings[queue].isRunning = true
    }
    tellWhenHeld()
  }

  private func tellWhenHeld() {
    guard let adoption, adoption.waiting.isEmpty, let whenHeld = adoption.whenHeld else { return }
    self.adoption?.whenHeld = nil
    whenHeld(adoption.failure)
  }

  /// The old server has released it: everything starts.
  func release() {
    guard let adoption, !isOver else { return }
    self.adoption = nil
    for queue in adoption.rings.subtracting(adoption.later) { served.device.release(queue: queue) }
    session.keepConfiguration()
    // Rings that waited for translations ask for them again, even if they never ran.
    session.goOn(with: session.isTranslated ? Array(session.rings.indices) : [])
    if let (socket, writer) = channel { openChannel(socket, unsent: writer) }
    open()
    goOn()
  }

  /// The old server continues the connection. Nothing was popped, and nothing is sent.
  func abandonAdoption() {
    adoption = nil
    isOver = true
    served.attended.stopAll()
  }
}
