/// The life cycle of rings, and of the memory that they lie in.
public import VirtioCore

// MARK: Parameters

extension BackendSession {
  mutating func setSize(_ message: Message) throws(Refusal) {
    let (index, size) = try state(message)
    guard !rings[index].isRunning else {
      guard rings[index].size.map(UInt32.init) == size else { throw .queueRuns(index) }
      return
    }
    // A packed ring can have any size.
    guard let entries = UInt16(exactly: size), entries > 0, isPacked || entries & (entries - 1) == 0,
      entries <= device.maximumQueueSize
    else { throw .badQueueSize(size, limit: device.maximumQueueSize) }
    rings[index].size = entries
    steps.append(.startIfReady(index, refuses: true))
  }

  /// Repeated on a running ring with another flag for the dirty log; nothing else about a running ring can change.
  mutating func setAddress(_ message: Message) throws(Refusal) {
    guard let address = VringAddress(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    let index = try self.index(address.index)
    if rings[index].isRunning {
      guard let current = rings[index].address,
        (current.descriptorTable, current.availableRing, current.usedRing)
          == (address.descriptorTable, address.availableRing, address.usedRing)
      else { throw .queueRuns(index) }
    }
    try Ring.check(address, in: table, isTranslated: isTranslated)
    let before = rings[index].address
    rings[index].address = address
    if !rings[index].isRunning { rings[index].wait = nil }
    if before?.logsUsedRing != address.logsUsedRing || before?.log != address.log { changeLogging(of: [index]) }
    steps.append(.startIfReady(index, refuses: true))
  }

  /// A ring outside memory never runs, even if the front-end ignores the refusal: so its err descriptor is signalled, too, if
  /// there is one by then.
  mutating func announce(_ refusal: Refusal, to message: Message) {
    guard case .notInMemory = refusal, message.request == FrontendRequest.setVringAddress.rawValue,
      let address = VringAddress(decoding: message.payload), let index = try? index(address.index)
    else { return }
    if case .none = rings[index].failure { return }
    steps.append(.effect(.signal(rings[index].failure)))
  }

  mutating func setBase(_ message: Message) throws(Refusal) {
    let (index, base) = try state(message)
    guard !rings[index].isRunning else { throw .queueRuns(index) }
    if isPacked {
      // Slot and wrap counter of the available position, and above them of the used one; some front-ends send only the lower
      // half.
      let available = UInt16(truncatingIfNeeded: base)
      let used = UInt16(truncatingIfNeeded: base >> 16)
      rings[index].position = QueuePosition(available: available, used: used == 0 ? available : used)
    } else {
      guard let available = UInt16(exactly: base) else { throw .badBase(base) }
      rings[index].position = QueuePosition(available: available, used: nil)
    }
  }

  /// Answered when everything in flight on the ring is completed.
  mutating func getBase(_ message: Message) throws(Refusal) {
    let (index, _) = try state(message)
    steps.append(.stop(index))
    steps.append(.replyBase(index))
  }

  private func state(_ message: Message) throws(Refusal) -> (Int, UInt32) {
    guard let state = VringState(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    return (try index(state.index), state.number)
  }

  private func index(_ value: UInt32) throws(Refusal) -> Int {
    guard let index = Int(exactly: value), index < rings.count else { throw .noSuchQueue(value, count: rings.count) }
    return index
  }
}

// MARK: Descriptors

extension BackendSession {
  /// Starts the ring. It runs once it is enabled, which may already have happened.
  mutating func setKick(_ message: Message) throws(Refusal) {
    let (index, descriptor) = try ringDescriptor(message)
    examine(descriptor, for: .kick) { session, examined in
      let kick: KickSource = if case .kick(let source)? = examined { source } else { .none }
      session.proceed([
        .stop(index),
        .changeRing(index) {
          $0.kick = kick
          $0.hasFailed = false
        }, .startIfReady(index, refuses: true),
      ])
    }
  }

  /// A new call descriptor is signalled once: earlier completions were announced to nobody, or to a descriptor that is gone.
  mutating func setCall(_ message: Message) throws(Refusal) {
    let (index, descriptor) = try ringDescriptor(message)
    examine(descriptor, for: .call) { session, examined in
      let call = Self.sink(examined)
      session.rings[index].call = call
      session.proceed([.effect(session.rings[index].isRunning ? .replaceCall(queue: index, call) : .signal(call))])
    }
  }

  mutating func setError(_ message: Message) throws(Refusal) {
    let (index, descriptor) = try ringDescriptor(message)
    examine(descriptor, for: .failure) { session, examined in
      let failure = Self.sink(examined)
      session.rings[index].failure = failure
      if session.rings[index].isRunning { session.proceed([.effect(.replaceFailure(queue: index, failure))]) }
    }
  }

  private static func sink(_ examined: ExaminedDescriptor?) -> CallSink {
    if case .sink(let sink)? = examined { sink } else { .none }
  }

  /// Continues when the descriptor has been found suitable, or at once if there is none.
  private mutating func examine(
    _ descriptor: OwnedDescriptor?, for purpose: DescriptorPurpose,
    then goOn: @escaping @Sendable (inout BackendSession, ExaminedDescriptor?) -> Void
  ) {
    guard let descriptor else { return goOn(&self, nil) }
    whenExamined = { session, examined in goOn(&session, examined) }
    steps.append(.effect(.examine(DescriptorExamination(purpose: purpose, descriptor: descriptor))))
  }

  /// These are the next steps.
  private mutating func proceed(_ next: [Step]) { steps.insert(contentsOf: next, at: 0) }

  /// The answer to `Effect.examine`. An unsuitable descriptor means a refused message.
  public mutating func examined(_ result: Result<ExaminedDescriptor, Refusal>) {
    guard let goOn = whenExamined else { return }
    whenExamined = nil
    switch result {
    case .success(let examined): goOn(&self, examined)
    case .failure(let refusal):
      steps = [.finish]
      exchange?.refusal = refusal
    }
  }

  mutating func setEnable(_ message: Message) throws(Refusal) {
    let (index, value) = try state(message)
    guard value <= 1 else { throw .badEnable(value) }
    rings[index].isEnabled = value == 1
    // A running ring keeps it until it has stopped.
    if value == 0, !rings[index].isRunning { rings[index].wait = nil }
    steps.append(value == 1 ? .startIfReady(index, refuses: true) : .stop(index))
  }

  private func ringDescriptor(_ message: Message) throws(Refusal) -> (Int, OwnedDescriptor?) {
    guard let word = VringDescriptorWord(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    let index = try self.index(UInt32(word.index))
    let expected = word.hasDescriptor ? 1 : 0
    guard message.descriptors.count == expected else {
      throw .wrongDescriptorCount(message.descriptors.count, expected: expected)
    }
    return (index, message.descriptors.first)
  }
}

// MARK: Running

extension BackendSession {
  mutating func startIfReady(_ index: Int, refuses: Bool) -> Effect? {
    if isTranslated {
      let (mayStart, effect) = awaitTranslation(index)
      guard mayStart else { return effect }
    }
    do {
      guard let activation = try activation(of: index) else { return nil }
      if let kept = configurationToRestore {
        (configurationInRestoration, configurationToRestore) = (kept, nil)
        steps.insert(.startIfReady(index, refuses: refuses), at: 0)
        return .writeConfiguration(offset: Int(kept.offset), [kept.value], restores: true)
      }
      rings[index].isRunning = true
      startRefuses = refuses
      return .start(activation)
    } catch {
      couldNotStart(index, error, refuses: refuses)
      return nil
    }
  }

  /// The activation of a ring; `nil` if it should not run now.
  mutating func activation(of index: Int) throws(Refusal) -> Activation? {
    let ring = rings[index]
    guard ring.isReady, let kick = ring.kick, let features, !table.entries.isEmpty else { return nil }
    let configuration = isTranslated ? ring.translatedConfiguration() : try ring.configuration(in: table)
    let memory = isTranslated ? translatedMemory() : table.memory
    let inflight = try inflight(for: index, size: configuration.size)
    return Activation(
      queue: index, memory: memory, features: features, configuration: configuration, position: position(of: ring),
      kick: kick, call: ring.call, failure: ring.failure, publishesInOrder: inflight == nil && device.publishesInOrder,
      inflight: inflight, log: log(of: ring))
  }

  /// The negotiated ring format is the packed one.
  var isPacked: Bool { features?.contains(.packedRing) == true }

  /// The position at which a ring starts. Without one, the ring is new.
  func position(of ring: Ring) -> QueuePosition {
    guard isPacked else { return ring.position }
    guard ring.position != Ring.unsaid else { return .start(.packedRing) }
    return QueuePosition(available: ring.position.available, used: ring.position.used ?? ring.position.available)
  }

  /// Restarts rings that were stopped for another reason than a message about them. The effects follow from `nextEffect`.
  mutating func goOn(with indices: some Sequence<Int>) {
    for index in indices { steps.append(.startIfReady(index, refuses: false)) }
  }

  /// Another server may have served these rings and is gone: they continue from guest memory, as after a crash.
  ///
  /// - Returns: false if memory does not tell what was done: there are no in-flight records, and answers were not published in
  ///   order.
  mutating func recover(_ indices: some Sequence<Int>) -> Bool {
    // A packed ring does not show its position; a record does.
    if isPacked { return inflight != nil }
    guard inflight != nil || device.publishesInOrder || features?.contains(.inOrder) == true else { return false }
    for index in indices {
      let memory = isTranslated ? translatedMemory() : table.memory
      let ring = rings[index]
      guard let configuration = isTranslated ? ring.translatedConfiguration() : try? ring.configuration(in: table),
        let used = RingIndices(configuration, in: memory)?.used
      else { return false }
      rings[index].position = QueuePosition(available: used, used: nil)
    }
    return true
  }

  /// The answer to `Effect.start`.
  ///
  /// - Parameter failure: why the device did not start the queue; `nil` if it did.
  public mutating func started(queue index: Int, failure: QueueError?) {
    guard let failure else { return tellConfigurationChange() }
    rings[index].isRunning = false
    couldNotStart(index, .queue(failure), refuses: startRefuses)
  }

  /// The message was accepted and the ring was changed accordingly; only the start failed. The front-end learns this through
  /// the ring's err descriptor, and, if it asked for an acknowledgement, from that.
  mutating func couldNotStart(_ index: Int, _ refusal: Refusal, refuses: Bool) {
    steps.insert(
      contentsOf: [.effect(.signal(rings[index].failure)), .effect(.queueRefused(queue: index, refusal))], at: 0)
    if refuses, exchange?.wantsReply == true { exchange?.refusal = refusal }
  }

  /// The answer to `Effect.stop`.
  ///
  /// - Parameter position: the position that the device reports; `nil` if the queue was not running.
  public mutating func stopped(queue index: Int, position: QueuePosition?) {
    rings[index].isRunning = false
    rings[index].wait = nil
    if let position { rings[index].position = position }
  }

  /// A queue broke. The device has signalled the err descriptor; a front-end can also read it from the status.
  public mutating func queueFailed(_ index: Int) {
    guard rings.indices.contains(index), rings[index].isRunning else { return }
    rings[index].hasFailed = true
    status.insert(.needsReset)
  }
}

// MARK: Memory

extension BackendSession {
  /// Rings that have everything except memory. That is acceptable for a moment: some front-ends describe rings first.
  public var ringsWithoutMemory: [Int] {
    guard features != nil, table.entries.isEmpty else { return [] }
    return rings.indices.filter { rings[$0].isReady }
  }

  /// The memory has still not come, which has to be reported. The effects follow from `nextEffect`.
  public mutating func memoryIsMissing() {
    for index in ringsWithoutMemory {
      steps += [.effect(.signal(rings[index].failure)), .effect(.queueRefused(queue: index, .noMemory))]
    }
  }

  mutating func setMemoryTable(_ message: Message) throws(Refusal) {
    guard let regions = MemoryRegion.decode(table: message.payload) else { throw .wrongSize(message.payload.count) }
    guard message.descriptors.count == regions.count else {
      throw .wrongDescriptorCount(message.descriptors.count, expected: regions.count)
    }
    do { change(try MemoryPlan(replacing: table, with: regions, message.descriptors, budget: memoryBudget)) } catch {
      throw .memory(error)
    }
  }

  mutating func addMemoryRegion(_ message: Message) throws(Refusal) {
    guard let region = MemoryRegion(decodingSingle: message.payload) else { throw .wrongSize(message.payload.count) }
    guard let descriptor = message.descriptors.first, message.descriptors.count == 1 else {
      throw .wrongDescriptorCount(message.descriptors.count, expected: 1)
    }
    do { change(try MemoryPlan(adding: region, descriptor, to: table, budget: memoryBudget)) } catch {
      throw .memory(error)
    }
  }

  /// Some front-ends send the region's descriptor, too; it is closed unused.
  mutating func removeMemoryRegion(_ message: Message) throws(Refusal) {
    guard let region = MemoryRegion(decodingSingle: message.payload) else { throw .wrongSize(message.payload.count) }
    guard message.descriptors.count <= 1 else {
      throw .wrongDescriptorCount(message.descriptors.count, expected: 0)
    }
    do { change(try MemoryPlan(removing: region, from: table)) } catch { throw .memory(error) }
  }

  /// Running queues are stopped and continue from there with the new table; those that waited for memory start.
  private mutating func change(_ plan: MemoryPlan) {
    for index in rings.indices { steps.append(.stop(index)) }
    steps.append(.effect(.map(plan)))
    for index in rings.indices { steps.append(.startIfReady(index, refuses: false)) }
  }

  /// The answer to `Effect.map`. After a failure the old table stays in force.
  public mutating func mapped(_ result: Result<MemoryTable, MemoryTableError>) {
    switch result {
    case .success(let table):
      self.table = table
      madeTranslations = nil
    case .failure(let error): exchange?.refusal = .memory(error)
    }
  }
}
