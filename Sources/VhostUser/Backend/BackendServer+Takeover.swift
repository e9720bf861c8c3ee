/// One disk in two processes: what is asked of the server before, and what the server after does with it.
public import Sockets
internal import VirtioCore

extension BackendServer {
  /// How far a takeover has come.
  enum Takeover {
    case none
    /// Coming to a standstill for another server; called with the state, or why there is none.
    case pausing((Result<(ServerState, DescriptorList), TakeoverError>) -> Void)
    /// Nothing moves.
    case paused
    /// Another server has the disk.
    case over
    /// Another server has it still. `table`: memory that is mapped already; called when the queues are prepared.
    case preparing(table: MemoryTable, ((TakeoverError?) -> Void)?)

    /// A front-end that comes now is let in here.
    var letsIn: Bool { if case .none = self { true } else { false } }
  }

  // MARK: The server before

  /// The state as it is now. What comes later may change it, but for the device's own part.
  public var state: (ServerState, DescriptorList) {
    var list = DescriptorList()
    var listener: Int?
    if case .listening(let own) = socket { listener = list.add(own.socket) }
    let connection = connection.flatMap { $0.isOver ? nil : $0.state(&list) }
    return (ServerState(listener: listener, device: served.state, connection: connection), list)
  }

  /// Brings the disk to a standstill, so that another server can go on with it: nobody is let in, nothing is read, and every
  /// queue stops where it is, with nothing in flight.
  ///
  /// - Parameter then: called once with the state. A medium that does not answer keeps it: who waits has to have a limit, and
  ///   then calls `goOn`.
  public func pause(then: @escaping (Result<(ServerState, DescriptorList), TakeoverError>) -> Void) {
    guard !isClosed, case .none = takeover else { return then(.failure(.busy("the disk is about to be closed"))) }
    guard served.device.leftQueues.isEmpty else {
      return then(.failure(.busy("queues of an earlier connection wait for their medium")))
    }
    guard connection?.isOver != true else { return then(.failure(.busy("queues are stopping after their front-end has gone"))) }
    takeover = .pausing(then)
    stopListening()
    guard let connection else { return isStill() }
    connection.standStill { [weak self] in self?.isStill() }
  }

  private func isStill() {
    guard case .pausing(let then) = takeover else { return }
    takeover = .paused
    then(.success(state))
  }

  /// The other server does not take the disk: everything goes on here.
  ///
  /// - Parameter fromMemory: it may have had it, and is gone. Queues go on from what is in guest memory then, as after a crash;
  ///   where that does not say what is done, the connection ends.
  public func goOn(fromMemory: Bool = false) {
    switch takeover {
    case .pausing, .paused: break
    case .none, .over, .preparing: return
    }
    takeover = .none
    if let connection {
      if !connection.goOn(fromMemory: fromMemory) { connection.end(.cannotGoOn) }
    } else {
      listenAgain(after: .zero)
    }
  }

  /// Another server has the disk. Nothing of it is touched here any more; who holds the socket and the image lets go of them
  /// without removing or unlocking what they stand for.
  public func handOver() {
    takeover = .over
    stopListening()
    if let deviceEvents { loop.remove(deviceEvents) }
    deviceEvents = nil
    connection?.letGo()
    connection = nil
    leaveSocket()
  }

  /// The other server may have begun: whatever becomes of this process, the socket's file stays.
  public func leaveSocket() { if case .listening(let listener) = socket { listener.leaveFile() } }

  /// The other server is gone.
  public func ownSocket() { if case .listening(let listener) = socket { listener.ownFile() } }

  /// Whatever was asked for does not come any more.
  func cancelTakeover() {
    guard case .pausing(let then) = takeover else { return }
    takeover = .none
    then(.failure(.overtaken))
  }

  // MARK: The server after

  /// Makes ready what can be before the other server stops: the device as the driver has chosen it, and guest memory mapped.
  /// Only for a server that was not opened.
  ///
  /// - Parameters:
  ///   - errands: who closes the descriptors of the list.
  ///   - then: called once, with why it cannot be done here.
  public func prepare(
    _ state: ServerState, _ list: DescriptorList, errands: ErrandQueue, then: @escaping (TakeoverError?) -> Void
  ) {
    takeover = .preparing(table: MemoryTable(), nil)
    do throws(TakeoverError) {
      if deviceEvents == nil {
        do { try attend() } catch { throw .refused("the device's events cannot be waited for: \(error)") }
      }
      try served.restore(state.device)
    } catch { return then(error) }
    guard let restoration = restoration(state, list) else { return then(nil) }
    loop.perform(on: errands) { () -> Result<MemoryTable, TakeoverError> in
      do throws(TakeoverError) { return .success(try restoration.mapMemory()) } catch { return .failure(error) }
    } then: { [weak self] result in
      switch result {
      case .success(let table): self?.prepareQueues(restoration, table, then)
      case .failure(let error): then(error)
      }
    }
  }

  private func prepareQueues(
    _ restoration: SessionRestoration, _ table: MemoryTable, _ then: @escaping (TakeoverError?) -> Void
  ) {
    let running = restoration.running
    takeover = .preparing(table: table, running.isEmpty ? nil : then)
    guard !running.isEmpty else { return then(nil) }
    let features = FeatureSet(rawValue: restoration.state.features ?? 0)
    served.attended.prepare(
      running, memory: table.memory, isRecorded: restoration.state.inflight != nil, isPacked: features.contains(.packedRing))
  }

  /// What the device answered to that.
  func prepared(_ event: DeviceEvent) {
    guard event.isPreparation, case .preparing(let table, let then?) = takeover else { return }
    takeover = .preparing(table: table, nil)
    if case .notPrepared(let error) = event { then(.notPrepared(error)) } else { then(nil) }
  }

  /// Goes on with the state at which the other server stands still, as far as that goes before it is over with it: every queue
  /// that ran is started, and held.
  ///
  /// - Parameter then: called once, with why that cannot be done here. After a failure only `giveBack` may follow, otherwise
  ///   `release`.
  public func adopt(
    _ state: ServerState, _ list: DescriptorList, errands: ErrandQueue, then: @escaping (TakeoverError?) -> Void
  ) {
    do throws(TakeoverError) { try served.restore(state.device) } catch { return then(error) }
    guard let restoration = restoration(state, list) else { return then(nil) }
    loop.perform(on: errands) { () -> Result<BackendSession, TakeoverError> in
      do throws(TakeoverError) { return .success(try restoration.carryOut()) } catch { return .failure(error) }
    } then: { [weak self] result in
      guard let self else { return }
      do throws(TakeoverError) {
        let session = try result.get()
        let socket = try list.descriptor(restoration.state.socket)
        connection(on: socket, errands: errands).adopt(session, restoration, then: then)
      } catch { then(error) }
    }
  }

  /// The other server is over with the disk: its queues begin, and its front-end, or the next one, is listened to.
  public func release() {
    takeover = .none
    ownSocket()
    if let connection { connection.release() } else { listenAgain(after: .zero) }
    // For queues that ran when that was asked for, and do not now.
    served.attended.unprepare()
  }

  /// The other server keeps the disk. Queues that were held are stopped; nothing was taken from them.
  public func giveBack() {
    isClosed = true
    connection?.abandonAdoption()
    served.attended.unprepare()
  }

  private func restoration(_ state: ServerState, _ list: DescriptorList) -> SessionRestoration? {
    guard let connection = state.connection else { return nil }
    var table = MemoryTable()
    if case .preparing(let mapped, _) = takeover { table = mapped }
    return SessionRestoration(state: connection, list: list, device: served.description, table: table)
  }
}
