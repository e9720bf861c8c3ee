/// Makes operations fail, fall short, complete late or in another order, or never complete. The layers above cannot distinguish
/// that from a faulty medium: faults are reported in the same way as real errors.
internal import VirtioCore

/// It allocates freely: nobody measures speed while injecting faults.
@safe
final class FaultLayer: EngineLayer {
  /// How long results wait for others to be reordered with, nanoseconds.
  private static let company: UInt64 = 10_000_000

  let base: any EngineObject
  private let injector: FaultInjector

  /// What to do when the operation below is done.
  @safe
  private struct Sequel {
    var verdict: FaultVerdict
    /// The own pieces of a short transfer, to be freed.
    var pieces: UnsafeMutablePointer<MemorySegment>?
  }
  private typealias Result = (tag: UInt32, result: Int32)

  private var sequels: [UInt32: Sequel] = [:]
  /// Results with the time when they are reported.
  private var late: [(due: UInt64, result: Result)] = []
  private var mixed: [Result] = []
  private var mixingEnds: UInt64 = 0
  private var ready: [Result] = []
  private var random = FaultRandom(seed: 7)

  init(_ base: any EngineObject, _ injector: FaultInjector) {
    self.base = base
    self.injector = injector
  }

  // Nothing is in flight any more.
  deinit { for tag in sequels.keys { unsafe sequels[tag]?.pieces?.deallocate() } }

  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    let verdict = injector.decide(operation)
    guard !verdict.isNothing else { return base.start(operation, tag: tag) }
    var sequel = unsafe Sequel(verdict: verdict, pieces: nil)
    let outcome: IOOutcome
    switch verdict.ruin {
    case .never: return .pending
    case .error(let number): outcome = .finished(-number)
    case .short(0): outcome = .finished(0)
    case .short(let bytes):
      let (part, pieces) = unsafe Self.cut(operation, bytes)
      unsafe sequel.pieces = pieces
      outcome = base.start(part, tag: tag)
    case nil: outcome = base.start(operation, tag: tag)
    }
    switch outcome {
    case .pending:
      sequels[tag] = sequel
      return .pending
    case .finished(let result):
      unsafe sequel.pieces?.deallocate()
      return hold((tag, result), verdict) ? .pending : outcome
    }
  }

  /// The first bytes of a transfer, in its own pieces. - Parameter bytes: at least 1, and less than all.
  private static func cut(
    _ operation: IOOperation, _ bytes: UInt64
  ) -> (IOOperation, UnsafeMutablePointer<MemorySegment>?) {
    guard let all = unsafe operation.segments, operation.segmentCount > 0 else { return (operation, nil) }
    let pieces = UnsafeMutablePointer<MemorySegment>.allocate(capacity: operation.segmentCount)
    var part = operation
    part.length = bytes
    unsafe part.segments = pieces
    part.segmentCount = 0
    var left = Int(bytes)
    for index in 0..<operation.segmentCount where left > 0 {
      let segment = unsafe all[index]
      let count = min(segment.count, left)
      unsafe (pieces + part.segmentCount).initialize(to: MemorySegment(base: segment.base, count: count))
      part.segmentCount += 1
      left -= count
    }
    return unsafe (part, pieces)
  }

  /// - Returns: false if the result has to be reported at once.
  private func hold(_ result: Result, _ verdict: FaultVerdict) -> Bool {
    if verdict.delay > 0 {
      late.append((Clock.now &+ verdict.delay, result))
      return true
    }
    guard verdict.reorder > 1 else { return false }
    if mixed.isEmpty { mixingEnds = Clock.now &+ Self.company }
    mixed.append(result)
    if mixed.count >= verdict.reorder { mix() }
    return true
  }

  private func mix() {
    ready += mixed.shuffled(using: &random)
    mixed.removeAll()
  }

  /// Makes results ready that have waited long enough.
  private func collectDue() {
    guard !late.isEmpty || !mixed.isEmpty else { return }
    let now = Clock.now
    if !mixed.isEmpty, now >= mixingEnds { mix() }
    guard late.contains(where: { $0.due <= now }) else { return }
    ready += late.filter { $0.due <= now }.sorted { $0.due < $1.due }.map(\.result)
    late.removeAll { $0.due <= now }
  }

  var hasFinished: Bool {
    collectDue()
    return base.hasFinished || !ready.isEmpty && !isLost
  }

  func nextEvent() -> EngineEvent? {
    // If the engine below is lost, so is everything in flight.
    if !isLost {
      collectDue()
      if !ready.isEmpty {
        let (tag, result) = ready.removeFirst()
        return .completion(tag: tag, result: result)
      }
    }
    while let event = base.nextEvent() {
      guard case .completion(let tag, let result) = event, let sequel = sequels.removeValue(forKey: tag) else {
        return event
      }
      unsafe sequel.pieces?.deallocate()
      if !hold((tag, result), sequel.verdict) { return event }
    }
    return nil
  }

  func wait(nanoseconds: Int64?) {
    collectDue()
    guard ready.isEmpty || isLost else { return base.wait(nanoseconds: 0) }
    var ends = late.map(\.due)
    if !mixed.isEmpty { ends.append(mixingEnds) }
    guard let end = ends.min() else { return base.wait(nanoseconds: nanoseconds) }
    let left = Int64(clamping: end) - Int64(clamping: Clock.now)
    base.wait(nanoseconds: max(0, min(left, nanoseconds ?? .max)))
  }
}
