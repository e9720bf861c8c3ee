/// A session as a value with which another process can continue.
internal import VirtioCore

extension BackendSession {
  /// The previous message has been handled completely.
  var isBetweenMessages: Bool { steps.isEmpty && exchange == nil }

  /// Writes the session's part of a state. - Parameter running: rings that the next server serves at once.
  func fill(_ state: inout ConnectionState, _ list: inout DescriptorList, running: Set<Int>) {
    state.protocolFeatures = protocolFeatures.rawValue
    state.features = features?.rawValue
    state.status = status.rawValue
    state.memory = table.entries.map { entry in
      .init(
        guestAddress: entry.region.guestAddress.rawValue, size: entry.region.size, userAddress: entry.region.userAddress,
        offset: entry.region.offset, file: list.add(entry.descriptor))
    }
    state.log = log.map { .init(file: list.add($0.descriptor), offset: $0.offset, size: $0.size) }
    state.logsBuffers = logsBuffers
    state.inflight = inflight.map {
      .init(
        file: list.add($0.descriptor), offset: $0.offset, size: $0.size, queues: $0.queueCount, queueSize: $0.queueSize)
    }
    state.owesConfigurationChange = owesConfigurationChange
    state.configurationToRestore = configurationToRestore.map { .init(offset: $0.offset, value: $0.value) }
    if isTranslated {
      state.translations = translations.entries.map {
        .init(first: $0.first, last: $0.last, userAddress: $0.user, permission: $0.access.rawValue)
      }
    }
    state.rings = rings.indices.map { ringState(rings[$0], runs: running.contains($0), &list) }
  }

  private func ringState(_ ring: Ring, runs: Bool, _ list: inout DescriptorList) -> ConnectionState.RingState {
    var kick: Int?
    if case .eventCounter(let descriptor)? = ring.kick { kick = list.add(descriptor) }
    return .init(
      size: ring.size,
      address: ring.address.map {
        .init(
          flags: $0.flags, descriptorTable: $0.descriptorTable, usedRing: $0.usedRing, availableRing: $0.availableRing,
          log: $0.log)
      },
      available: position(of: ring).available, used: position(of: ring).used, isStarted: ring.isStarted,
      isEnabled: ring.isEnabled,
      runs: runs, hasFailed: ring.hasFailed, kick: kick, call: list.add(ring.call), failure: list.add(ring.failure))
  }
}

/// Restores the session of another process: maps its files and examines its descriptors.
struct SessionRestoration: Sendable {
  let state: ConnectionState
  let list: DescriptorList
  let device: BackendSession.DeviceDescription
  /// Memory that was mapped for an earlier state of the same connection: unchanged regions keep their mappings.
  let table: MemoryTable

  /// Maps the memory. Queries files of other processes, which may block forever: not for a control thread.
  func mapMemory() throws(TakeoverError) -> MemoryTable {
    let regions = state.memory.map {
      MemoryRegion(
        guestAddress: GuestAddress($0.guestAddress), size: $0.size, userAddress: $0.userAddress, offset: $0.offset)
    }
    // The existing table is kept if nothing has changed: queues were prepared for exactly this memory.
    var descriptors: [OwnedDescriptor] = []
    for region in state.memory { descriptors.append(try list.descriptor(region.file)) }
    let plan: MemoryPlan
    do { plan = try MemoryPlan(replacing: table, with: regions, descriptors, budget: device.memoryBudget) } catch {
      throw .refused("\(error)")
    }
    let mapped: MemoryTable
    switch plan.carryOut() {
    case .success(let new): mapped = new
    case .failure(let error): throw .refused("\(error)")
    }
    return mapped.hasSameMappings(as: table) ? table : mapped
  }

  /// The whole session, with no ring running. Queries descriptors of other processes: not for a control thread.
  func carryOut() throws(TakeoverError) -> BackendSession {
    guard state.rings.count == min(device.queueCount, 256) else {
      throw .notTheSame("number of queues", theirs: "\(state.rings.count)", ours: "\(device.queueCount)")
    }
    var session = BackendSession(device)
    session.table = try mapMemory()
    session.protocolFeatures = ProtocolFeatures(rawValue: state.protocolFeatures)
    guard session.protocolFeatures.isSubset(of: device.protocolFeatures) else {
      throw .invalid("protocol features that are not offered were negotiated")
    }
    session.features = state.features.map { FeatureSet(rawValue: $0) }
    session.status = DeviceStatus(rawValue: state.status)
    session.logsBuffers = state.logsBuffers
    session.owesConfigurationChange = state.owesConfigurationChange
    session.hasChannel = state.channel != nil
    if let log = state.log {
      let plan = LogPlan(descriptor: try list.descriptor(log.file), offset: log.offset, size: log.size)
      session.log = try success(plan.carryOut())
    }
    if let records = state.inflight {
      guard (1...256).contains(records.queues) else { throw .invalid("in-flight records of \(records.queues) queues") }
      let plan = InflightPlan(
        description: InflightDescription(
          byteCount: records.size, offset: records.offset, queueCount: UInt16(records.queues), queueSize: records.queueSize),
        descriptor: try list.descriptor(records.file), isPacked: session.isPacked)
      session.inflight = try success(plan.carryOut())
    }
    // The rest of the configuration is restored with the device.
    session.configurationToRestore = state.configurationToRestore.map { .init(offset: $0.offset, value: $0.value) }
    if session.configurationToRestore?.offset != device.writableByte { session.configurationToRestore = nil }
    for translation in state.translations ?? [] {
      let (userLast, overflow) = translation.userAddress.addingReportingOverflow(translation.last &- translation.first)
      let access = MemoryAccess(rawValue: translation.permission)
      guard translation.first <= translation.last, !overflow, !access.isEmpty, access.isSubset(of: [.read, .write]) else {
        throw .invalid("a translation at \(GuestAddress(translation.first))")
      }
      // Its memory may have been removed since: translations that are needed are requested again.
      guard session.table.holds(userFirst: translation.userAddress, last: userLast) else { continue }
      session.translations.insert(
        .init(first: translation.first, last: translation.last, user: translation.userAddress, access: access))
    }
    for index in state.rings.indices { session.rings[index] = try ring(state.rings[index], session) }
    return session
  }

  /// Rings to serve at once.
  var running: [Int] { state.rings.indices.filter { state.rings[$0].runs } }

  private func success<Value, Failure: Error>(_ result: Result<Value, Failure>) throws(TakeoverError) -> Value {
    switch result {
    case .success(let value): return value
    case .failure(let error): throw .refused("\(error)")
    }
  }

  private func ring(
    _ state: ConnectionState.RingState, _ session: BackendSession
  ) throws(TakeoverError) -> Ring {
    var ring = Ring()
    if let size = state.size {
      guard size > 0, session.isPacked || size & (size - 1) == 0, size <= device.maximumQueueSize else {
        throw .invalid("a ring of \(size) entries")
      }
      ring.size = size
    }
    ring.address = state.address.map {
      VringAddress(
        index: 0, flags: $0.flags, descriptorTable: $0.descriptorTable, usedRing: $0.usedRing,
        availableRing: $0.availableRing, log: $0.log)
    }
    if let address = ring.address {
      do { try Ring.check(address, in: session.table, isTranslated: session.isTranslated) } catch { throw .refused("\(error)") }
    }
    ring.position = QueuePosition(available: state.available, used: state.used)
    ring.isEnabled = state.isEnabled
    ring.hasFailed = state.hasFailed
    if state.isStarted {
      ring.kick = KickSource.none
      if let kick = try list.optional(state.kick) {
        guard case .kick(let source) = try examined(kick, .kick) else { throw .invalid("a kick descriptor") }
        ring.kick = source
      }
    }
    ring.call = try sink(state.call, .call)
    ring.failure = try sink(state.failure, .failure)
    return ring
  }

  private func sink(_ place: Int?, _ purpose: DescriptorPurpose) throws(TakeoverError) -> CallSink {
    guard let descriptor = try list.optional(place) else { return .none }
    guard case .sink(let sink) = try examined(descriptor, purpose) else { throw .invalid("a \(purpose.rawValue) descriptor") }
    return sink
  }

  private func examined(
    _ descriptor: OwnedDescriptor, _ purpose: DescriptorPurpose
  ) throws(TakeoverError) -> ExaminedDescriptor {
    try success(DescriptorExamination(purpose: purpose, descriptor: descriptor).carryOut())
  }
}
