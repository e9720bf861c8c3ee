/// GET_INFLIGHT_FD and SET_INFLIGHT_FD: in-flight records, in memory that outlives this back-end.
public import VirtioCore

extension BackendSession {
  /// A front-end requests memory, keeps it, and hands it back with SET_INFLIGHT_FD: immediately, and again after a reconnect.
  /// Nothing is recorded before that.
  mutating func getInflight(_ message: Message) throws(Refusal) {
    let asked = try inflightDescription(message)
    steps.append(
      .effect(.createInflight(queueCount: Int(asked.queueCount), queueSize: asked.queueSize, isPacked: isPacked)))
  }

  /// The answer to `Effect.createInflight`. If no records can be made, the reply says so, and the front-end continues without
  /// them.
  public mutating func inflightCreated(_ result: Result<InflightMemory, InflightError>) {
    guard let exchange else { return }
    switch result {
    case .success(let memory):
      let description = InflightDescription(
        byteCount: memory.size, offset: memory.offset, queueCount: UInt16(clamping: memory.queueCount),
        queueSize: memory.queueSize)
      let reply = Message(replyTo: exchange.request, payload: description.bytes, descriptors: [memory.descriptor])
      steps.insert(.effect(.reply(reply)), at: 0)
    case .failure(let error):
      let none = InflightDescription(queueCount: 0, queueSize: 0)
      steps.insert(
        contentsOf: [
          .effect(replyEffect(none.bytes)), .effect(.refused(request: exchange.request, .inflight(error))),
        ], at: 0)
    }
  }

  /// The records may be ours or those of another back-end. Their contents are checked when a queue starts.
  mutating func setInflight(_ message: Message) throws(Refusal) {
    // With a second record, each of the two would have only a part of a queue's requests.
    if let running = rings.firstIndex(where: \.isRunning) { throw .queueRuns(running) }
    let described = try inflightDescription(message)
    guard let descriptor = message.descriptors.first, message.descriptors.count == 1 else {
      throw .wrongDescriptorCount(message.descriptors.count, expected: 1)
    }
    try checkInflightBudget(described.byteCount)
    steps.append(.effect(.mapInflight(InflightPlan(description: described, descriptor: descriptor, isPacked: isPacked))))
  }

  /// The answer to `Effect.mapInflight`. After a failure no record is kept: the previous one has been abandoned by the
  /// front-end.
  public mutating func inflightMapped(_ result: Result<InflightMemory, InflightError>) {
    switch result {
    case .success(let memory):
      inflight = memory
      if writtenConfiguration != nil {
        memory.keep(writtenConfiguration)
      } else if let kept = memory.keptConfiguration, kept.offset == device.writableByte {
        configurationToRestore = kept
      } else {
        // The driver may have written before there were records, or over another connection.
        steps.insert(.keepConfiguration, at: 0)
      }
    case .failure(let error):
      inflight = nil
      exchange?.refusal = .inflight(error)
    }
  }

  private func inflightDescription(_ message: Message) throws(Refusal) -> InflightDescription {
    guard let asked = InflightDescription(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    guard asked.queueCount > 0, Int(asked.queueCount) <= rings.count else {
      throw .inflightQueueCount(asked.queueCount, limit: rings.count)
    }
    guard asked.queueSize > 0, asked.queueSize <= device.maximumQueueSize else {
      throw .inflightQueueSize(asked.queueSize, limit: device.maximumQueueSize)
    }
    return asked
  }

  /// The records and guest memory share one budget.
  private func checkInflightBudget(_ bytes: UInt64) throws(Refusal) {
    // Computed without a sum that could overflow.
    let left = table.regions.reduce(device.memoryBudget) { $1.size < $0 ? $0 - $1.size : 0 }
    guard bytes <= left else { throw .inflightOverBudget(bytes, budget: device.memoryBudget) }
  }

  /// The budget that is left for guest memory, bytes.
  var memoryBudget: UInt64 {
    let records = inflight?.size ?? 0
    return records < device.memoryBudget ? device.memoryBudget - records : 0
  }

  /// The record of a queue that starts. Either all queues have one, or none: to continue after a crash a front-end needs
  /// all.
  func inflight(for queue: Int, size: UInt16) throws(Refusal) -> InflightMemory? {
    guard let inflight else { return nil }
    guard queue < inflight.queueCount else { throw .noInflightRecord(queue: queue, count: inflight.queueCount) }
    guard inflight.isPacked == isPacked else { throw .queue(.inflightFormat) }
    guard size <= inflight.queueSize else {
      throw .inflightTooSmall(queue: queue, size: size, limit: inflight.queueSize)
    }
    return inflight
  }
}

/// Records to be mapped. Making the plan does no I/O; `carryOut` queries a file of another process, which may block forever.
public struct InflightPlan: Sendable {
  let description: InflightDescription
  let descriptor: OwnedDescriptor
  /// The rings are packed.
  let isPacked: Bool

  /// New records, all empty.
  static func create(queueCount: Int, queueSize: UInt16, isPacked: Bool) -> Result<InflightMemory, InflightError> {
    do throws(InflightError) {
      return .success(try InflightMemory.create(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked))
    } catch { return .failure(error) }
  }

  public func carryOut() -> Result<InflightMemory, InflightError> {
    do throws(InflightError) {
      return .success(
        try InflightMemory(
          descriptor: descriptor, size: description.byteCount, offset: description.offset,
          queueCount: Int(description.queueCount), queueSize: description.queueSize, isPacked: isPacked))
    } catch { return .failure(error) }
  }
}
