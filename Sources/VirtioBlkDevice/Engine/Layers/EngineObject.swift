/// An engine with layers around it, which inject faults or record what was done. A device that has neither does not use any of
/// this.
internal import SystemPackage
internal import VirtioCore

/// A `BlockEngine` as an object, so that layers can be put around any of them without a specialized worker for each pair. It is
/// used by one thread, like an engine.
protocol EngineObject: AnyObject {
  var takesOnlyTransfers: Bool { get }
  var takesDiscards: Bool { get }
  var isLost: Bool { get }
  var awaitsThreads: Bool { get }
  var hasFinished: Bool { get }
  var systemCalls: UInt64 { get }
  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome
  func submit()
  func wait(nanoseconds: Int64?)
  func nextEvent() -> EngineEvent?
  func poll()
  func use(_ memory: GuestMemory)
  func watch(_ kick: KickSource, lane: Int) throws(Errno)
  func unwatch(lane: Int)
  func abandon()
}

/// The engine itself, inside the layers.
final class EngineBox<Engine: BlockEngine & ~Copyable>: EngineObject {
  private var engine: Engine

  init(_ engine: consuming Engine) { self.engine = engine }

  var takesOnlyTransfers: Bool { engine.takesOnlyTransfers }
  var takesDiscards: Bool { engine.takesDiscards }
  var isLost: Bool { engine.isLost }
  var awaitsThreads: Bool { engine.awaitsThreads }
  var hasFinished: Bool { engine.hasFinished }
  var systemCalls: UInt64 { engine.systemCalls }
  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome { engine.start(operation, tag: tag) }
  func submit() { engine.submit() }
  func wait(nanoseconds: Int64?) { engine.wait(nanoseconds: nanoseconds) }
  func nextEvent() -> EngineEvent? { engine.nextEvent() }
  func poll() { engine.poll() }
  func use(_ memory: GuestMemory) { engine.use(memory) }
  func watch(_ kick: KickSource, lane: Int) throws(Errno) { try engine.watch(kick, lane: lane) }
  func unwatch(lane: Int) { engine.unwatch(lane: lane) }
  func abandon() { engine.abandon() }
}

/// A layer around an engine: it does its own part, and leaves the rest to `base`.
protocol EngineLayer: EngineObject {
  var base: any EngineObject { get }
}

extension EngineLayer {
  var takesOnlyTransfers: Bool { base.takesOnlyTransfers }
  var takesDiscards: Bool { base.takesDiscards }
  var isLost: Bool { base.isLost }
  var awaitsThreads: Bool { base.awaitsThreads }
  var hasFinished: Bool { base.hasFinished }
  var systemCalls: UInt64 { base.systemCalls }
  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome { base.start(operation, tag: tag) }
  func submit() { base.submit() }
  func wait(nanoseconds: Int64?) { base.wait(nanoseconds: nanoseconds) }
  func nextEvent() -> EngineEvent? { base.nextEvent() }
  func poll() { base.poll() }
  func use(_ memory: GuestMemory) { base.use(memory) }
  func watch(_ kick: KickSource, lane: Int) throws(Errno) { try base.watch(kick, lane: lane) }
  func unwatch(lane: Int) { base.unwatch(lane: lane) }
  func abandon() { base.abandon() }
}

/// What a worker has instead of a plain engine.
struct LayeredEngine: BlockEngine, ~Copyable {
  static let movesData = true
  // `noticesCuts` stays false: the length of a file is checked whatever the engine below notices by itself.
  private let top: any EngineObject

  init(_ top: any EngineObject) { self.top = top }

  var takesOnlyTransfers: Bool { top.takesOnlyTransfers }
  var takesDiscards: Bool { top.takesDiscards }
  var isLost: Bool { top.isLost }
  var awaitsThreads: Bool { top.awaitsThreads }
  var hasFinished: Bool { top.hasFinished }
  var systemCalls: UInt64 { top.systemCalls }
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome { top.start(operation, tag: tag) }
  mutating func submit() { top.submit() }
  mutating func wait(nanoseconds: Int64?) { top.wait(nanoseconds: nanoseconds) }
  mutating func nextEvent() -> EngineEvent? { top.nextEvent() }
  mutating func poll() { top.poll() }
  mutating func use(_ memory: GuestMemory) { top.use(memory) }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try top.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { top.unwatch(lane: lane) }
  mutating func abandon() { top.abandon() }
}
