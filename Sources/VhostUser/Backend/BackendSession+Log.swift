/// The dirty log, for a front-end that migrates its guest ("Migration").
public import VirtioCore

/// A log to be mapped. Making the plan does no I/O; `carryOut` maps a file of another process, which may block forever.
public struct LogPlan: Sendable {
  let descriptor: OwnedDescriptor
  let offset: UInt64
  let size: UInt64

  public func carryOut() -> Result<DirtyLog, DirtyLogError> {
    do throws(DirtyLogError) {
      return .success(try DirtyLog(descriptor: descriptor, offset: offset, size: size))
    } catch { return .failure(error) }
  }
}

extension BackendSession {
  /// Which writes of a ring are logged now.
  func log(of ring: Ring) -> QueueLog? {
    guard let log else { return nil }
    let usedRing = ring.address.flatMap { $0.logsUsedRing ? $0.log : nil }
    guard logsBuffers || usedRing != nil else { return nil }
    return QueueLog(log: log, coversBuffers: logsBuffers, usedRing: usedRing)
  }

  /// The log is replaced. Queues that write to one are stopped and continue where they were.
  mutating func setLogBase(_ message: Message) throws(Refusal) {
    guard let area = SharedArea(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    guard let descriptor = message.descriptors.first, message.descriptors.count == 1 else {
      throw .wrongDescriptorCount(message.descriptors.count, expected: 1)
    }
    guard area.size <= Self.logLimit else { throw .logTooLarge(area.size, limit: Self.logLimit) }
    let logged = rings.indices.filter { logsBuffers || rings[$0].address?.logsUsedRing == true }
    for index in logged { steps.append(.stop(index)) }
    steps.append(.effect(.mapLog(LogPlan(descriptor: descriptor, offset: area.offset, size: area.size))))
    // All front-ends accept the request itself as an answer: some want a payload, some read none.
    steps.append(.effect(replyEffect(area.bytes)))
    for index in logged { steps.append(.startIfReady(index, refuses: false)) }
  }

  /// Enough for guest addresses of 52 bits, bytes.
  private static var logLimit: UInt64 { 1 << 37 }

  /// The answer to `Effect.mapLog`. If there is no log the message is refused, and what it stopped continues with the old
  /// one.
  public mutating func logMapped(_ result: Result<DirtyLog, DirtyLogError>) {
    switch result {
    case .success(let log): self.log = log
    case .failure(let error):
      steps.removeAll { if case .effect(.reply) = $0 { true } else { false } }
      exchange?.refusal = .log(error)
    }
  }

  /// Applies a change of logging to running rings: each is stopped and continues from there, so that no later write is missed.
  mutating func changeLogging(of indices: some Sequence<Int>) {
    guard log != nil else { return }
    for index in indices where rings[index].isRunning {
      steps.append(.stop(index))
      steps.append(.startIfReady(index, refuses: false))
    }
  }
}
