/// Reports every operation on the medium to a witness.
internal import VirtioCore

@safe
final class RecordingLayer: EngineLayer {
  let base: any EngineObject
  private let witness: any MediumWitness
  private var numbers: [UInt32: Int] = [:]

  init(_ base: any EngineObject, _ witness: any MediumWitness) {
    self.base = base
    self.witness = witness
  }

  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    guard let action = MediumAction(operation) else { return base.start(operation, tag: tag) }
    let number = witness.started(action)
    let outcome = base.start(operation, tag: tag)
    switch outcome {
    case .pending: numbers[tag] = number
    case .finished(let result): witness.finished(number, result: result)
    }
    return outcome
  }

  func nextEvent() -> EngineEvent? {
    let event = base.nextEvent()
    if case .completion(let tag, let result) = event, let number = numbers.removeValue(forKey: tag) {
      witness.finished(number, result: result)
    }
    return event
  }
}

extension MediumAction {
  /// - Returns: `nil` for operations that change nothing.
  init?(_ operation: IOOperation) {
    switch operation.kind {
    case .read: return nil
    case .write:
      self.init(.write)
      data = operation.bytes
    case .flush: self.init(.flush)
    case .punchHole, .zeroRange: self.init(.zero)
    case .blockDiscard: self.init(.forget)
    case .allocate: self.init(.allocate)
    }
    isDurable = operation.isDurable
    offset = operation.offset
    length = operation.length
  }
}

extension IOOperation {
  /// A copy of the contents of its segments.
  var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(clamping: length))
    for index in 0..<segmentCount {
      guard let segment = unsafe segments?[index] else { break }
      unsafe bytes.append(contentsOf: UnsafeRawBufferPointer(start: segment.base, count: segment.count))
    }
    return bytes
  }
}
