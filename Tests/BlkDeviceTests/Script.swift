/// An engine that does what a test prescribes: short transfers, errors, late and reversed completions.
import Synchronization
import SystemPackage
import VirtioCore

@testable import VirtioBlkDevice

/// What the engine is to do, and what it was asked: shared by the test and the engine on its thread.
final class Script: Sendable {
  enum Action: Sendable {
    /// Done completely.
    case whole
    /// Only so many bytes are transferred.
    case short(Int)
    /// Nothing is transferred, and this is the result: 0, or a negative errno.
    case result(Int32)
  }

  /// An operation as the engine received it.
  struct Record: Sendable {
    var kind: IOOperation.Kind
    var isDurable: Bool
    var offset: UInt64
    var length: UInt64
    /// The sum of its segments; `nil`: it has none.
    var segmentBytes: UInt64?
  }

  private struct State {
    var actions: [Action]
    var last: Action?
    var records: [Record] = []
    var isHolding = false
    var isLost = false
    var watchError: Errno?
    var held = 0
  }

  private let state: Mutex<State>
  /// Operations complete later instead of in place.
  let completesLater: Bool
  /// Only operations other than transfers complete later.
  let transfersInPlace: Bool
  /// Operations in flight complete last in, first out.
  let isBackwards: Bool
  /// Like a ring that polls its device.
  let takesOnlyTransfers: Bool
  /// Wakes the engine.
  let counter: OwnedDescriptor
  /// Called on the worker's thread whenever an operation is started.
  let onStart: (@Sendable () -> Void)?

  /// - Parameters:
  ///   - actions: one for each operation, in order; after the last one, `then`.
  init(
    _ actions: [Action] = [], then last: Action = .whole, completesLater: Bool = false, transfersInPlace: Bool = false,
    isBackwards: Bool = false,
    takesOnlyTransfers: Bool = false, onStart: (@Sendable () -> Void)? = nil
  ) throws {
    state = Mutex(State(actions: actions, last: last))
    self.completesLater = completesLater
    self.transfersInPlace = transfersInPlace
    self.isBackwards = isBackwards
    self.takesOnlyTransfers = takesOnlyTransfers
    self.onStart = onStart
    counter = try .eventCounter()
  }

  var records: [Record] { state.withLock { $0.records } }

  /// From now on nothing completes.
  func hold() { state.withLock { $0.isHolding = true } }
  /// Completes everything that is held.
  func release() {
    state.withLock { $0.isHolding = false }
    EventCounter.signal(counter.rawValue)
  }
  /// From now on the engine is lost, and completes nothing any more.
  func lose() {
    state.withLock {
      $0.isHolding = true
      $0.isLost = true
    }
    EventCounter.signal(counter.rawValue)
  }
  /// The next kick cannot be polled, with this error.
  func refuseWatch(_ error: Errno) { state.withLock { $0.watchError = error } }
  fileprivate func takeWatchError() -> Errno? {
    state.withLock { state in
      defer { state.watchError = nil }
      return state.watchError
    }
  }

  fileprivate var isLost: Bool { state.withLock { $0.isLost } }

  /// Operations in flight in the engine.
  var held: Int { state.withLock { $0.held } }

  fileprivate var isHolding: Bool { state.withLock { $0.isHolding } }
  fileprivate func setHeld(_ count: Int) { state.withLock { $0.held = count } }

  fileprivate func next(_ operation: IOOperation) -> Action {
    let segments = unsafe UnsafeBufferPointer(start: operation.segments, count: operation.segmentCount)
    let bytes = unsafe operation.segments == nil ? nil : segments.reduce(UInt64(0)) { $0 + UInt64($1.count) }
    return state.withLock { state in
      state.records.append(
        Record(
          kind: operation.kind, isDurable: operation.isDurable, offset: operation.offset, length: operation.length,
          segmentBytes: bytes))
      return state.actions.isEmpty ? state.last ?? .whole : state.actions.removeFirst()
    }
  }

  /// The body of a worker's thread.
  func serve(_ configuration: WorkerConfiguration, _ plan: EnginePlan) {
    guard
      let engine = try? ScriptedEngine(
        self, descriptor: plan.image.descriptor, mailbox: configuration.mailbox.descriptor)
    else { preconditionFailure("no descriptor for epoll") }
    do { try work(configuration, engine) } catch { preconditionFailure("no memory for a worker: \(error)") }
  }
}

@safe
struct ScriptedEngine: BlockEngine, ~Copyable {
  static let movesData = true

  private let script: Script
  private let medium: PlainIO
  private var waiter: EpollWaiter
  private var inFlight: [(tag: UInt32, result: Int32)] = []

  init(_ script: Script, descriptor: Int32, mailbox: Int32) throws(Errno) {
    self.script = script
    medium = PlainIO(descriptor: descriptor)
    waiter = try EpollWaiter(mailbox: mailbox, completions: script.counter.rawValue)
  }

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    script.onStart?()
    let result: Int32 =
      switch script.next(operation) {
      case .whole: medium.perform(operation)
      case .short(let count): perform(operation, only: count)
      case .result(let result): result
      }
    guard script.completesLater, !script.transfersInPlace || !operation.kind.isTransfer else { return .finished(result) }
    inFlight.append((tag, result))
    script.setHeld(inFlight.count)
    return .pending
  }

  private func perform(_ operation: IOOperation, only count: Int) -> Int32 {
    var part = operation
    var pieces: [MemorySegment] = []
    var left = count
    for index in 0..<operation.segmentCount where left > 0 {
      guard var piece = unsafe operation.segments?[index] else { break }
      piece.count = min(piece.count, left)
      left -= piece.count
      pieces.append(piece)
    }
    return unsafe pieces.withUnsafeMutableBufferPointer { pieces in
      unsafe part.segments = pieces.baseAddress
      part.segmentCount = pieces.count
      part.length = UInt64(count)
      return medium.perform(part)
    }
  }

  private var canComplete: Bool { !inFlight.isEmpty && !script.isHolding }

  mutating func nextEvent() -> EngineEvent? {
    if canComplete {
      let done = script.isBackwards ? inFlight.removeLast() : inFlight.removeFirst()
      script.setHeld(inFlight.count)
      return .completion(tag: done.tag, result: done.result)
    }
    while let wake = waiter.nextWake() {
      switch wake {
      case .completions: continue
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox: return .mailbox
      }
    }
    return nil
  }

  var takesOnlyTransfers: Bool { script.takesOnlyTransfers }
  var isLost: Bool { script.isLost }
  mutating func submit() {}
  mutating func poll() { waiter.wait(nanoseconds: 0) }
  mutating func wait(nanoseconds: Int64?) { waiter.wait(nanoseconds: canComplete ? 0 : nanoseconds) }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) {
    if let error = script.takeWatchError() { throw error }
    try waiter.watch(kick, lane: lane)
  }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { waiter.systemCalls }
}
