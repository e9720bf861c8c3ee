/// A takeover of one disk: the old server's side and the new server's.
public import Sockets
internal import VirtioCore

extension BackendServer {
  /// The phase of a takeover.
  enum Takeover {
    case none
    /// Stopping for another server; the closure is called with the state, or with the reason why there is none.
    case pausing((Result<(ServerState, DescriptorList), TakeoverError>) -> Void)
    /// Everything has stopped.
    case paused
    /// Another server has the disk.
    case over
    /// Another server still has it. `table`: memory that is mapped already; called when the queues are prepared.
    case preparing(table: MemoryTable, ((TakeoverError?) -> Void)?)

    /// Whether a front-end that connects now is accepted.
    var letsIn: Bool { if case .none = self { true } else { false } }
  }

  // MARK: The old server

  /// The current state. All of it may still change except the device's own part.
  public var state: (ServerState, DescriptorList) {
    var list = DescriptorList()
    var listener: Int?
    if case .listening(let own) = socket { listener = list.add(own.socket) }
    let connection = connection.flatMap { $0.isOver ? nil : $0.state(&list) }
    return (ServerState(listener: listener, device: served.state, connection: connection), list)
  }

  /// Stops the disk, so that another server can continue it: no connection is accepted, nothing is read, and every queue stops
  /// with nothing in flight.
  ///
  /// - Parameter then: called once with the state. A medium that does not answer delays it: the caller needs a time limit,
  ///   after which it calls `goOn`.
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

  /// The other server does not take over the disk: everything continues here.
  ///
  /// - Parameter fromMemory: the other server may have served the disk, and is gone. Queues then continue from guest memory, as
  ///   after a crash; if that does not tell what was done, the connection is closed.
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

  /// Another server has the disk. Nothing of it is used here any more; the owner of the socket and the image closes them
  /// without removing the socket's file or unlocking the image.
  public func handOver() {
    takeover = .over
    stopListening()
    if let deviceEvents { loop.remove(deviceEvents) }
    deviceEvents = nil
    connection?.letGo()
    connection = nil
    leaveSocket()
  }

  /// The other server may have started: whatever happens to this process, the socket's file stays.
  public func leaveSocket() { if case .listening(let listener) = socket { listener.leaveFile() } }

  /// The other server is gone: this one removes the socket's file again when it closes.
  public func ownSocket() { if case .listening(let listener) = socket { listener.ownFile() } }

  /// Cancels a pause that is not complete yet; its callback gets an error.
  func cancelTakeover() {
    guard case .pausing(let then) = takeover else { return }
    takeover = .none
    then(.failure(.overtaken))
  }

  // MARK: The new server

  /// Prepares what is possible before the old server stops: the device with the driver's choices, and mappings of guest
  /// memory. Only for a server that was not opened.
  ///
  /// - Parameters:
  ///   - errands: closes the descriptors of the list.
  ///   - then: called once, with the reason if it failed.
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

  /// The device has answered `prepare`.
  func prepared(_ event: DeviceEvent) {
    guard event.isPreparation, case .preparing(let table, let then?) = takeover else { return }
    takeover = .preparing(table: table, nil)
    if case .notPrepared(let error) = event { then(.notPrepared(error)) } else { then(nil) }
  }

  /// Continues from the state at which the old server stopped, as far as possible before that server has released the disk:
  /// every queue that ran is started, and held.
  ///
  /// - Parameter then: called once, with the reason if it failed. After a failure only `giveBack` may follow, otherwise
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

  /// The old server has released the disk: the queues start, and its front-end, or the next one, is served.
  public func release() {
    takeover = .none
    ownSocket()
    if let connection { connection.release() } else { listenAgain(after: .zero) }
    // For queues that were prepared because they ran then, and no longer do.
    served.attended.unprepare()
  }

  /// The old server keeps the disk. Queues that were held are stopped; nothing was popped from them.
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
