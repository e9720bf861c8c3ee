/// A device that only records what a transport does to it, and raises events that tests choose.
import CLinux
import Glibc
import Synchronization
import SystemPackage
import TestSupport
import VirtioCore

final class FakeDevice: VirtioDevice {
  /// A transport's calls, in order.
  enum Call: Equatable {
    case negotiated(FeatureSet)
    case wrote(Int, [UInt8])
    case start(Int, QueueConfiguration, available: UInt16)
    case stop(Int)
    case release(Int)
    case reset
  }

  struct State {
    var calls: [Call] = []
    var running: [Int: Activation] = [:]
    var events: [DeviceEvent] = []
    var configuration = [UInt8](repeating: 0, count: 64)
    var generation: UInt32 = 0
    var isHoldingStops = false
    var left: Set<Int> = []
    /// The positions at which queues stop; `nil`: where they were started.
    var progress: UInt16?
  }

  let state = Mutex(State())
  let bell: OwnedDescriptor
  let offered: FeatureSet
  let queueCount: Int
  let maximumQueueSize: UInt16 = 256
  /// Queues that refuse to start.
  let broken: Set<Int>

  init(
    queues: Int = 2, features: FeatureSet = [.version1, .indirectDescriptors, .eventIndex], broken: Set<Int> = []
  ) throws {
    queueCount = queues
    offered = features
    self.broken = broken
    bell = try .eventCounter()
    state.withLock { state in
      for index in state.configuration.indices { state.configuration[index] = UInt8(index) }
    }
  }

  var calls: [Call] { state.withLock { $0.calls } }
  var running: [Int: Activation] { state.withLock { $0.running } }

  func raise(_ event: DeviceEvent) {
    state.withLock { $0.events.append(event) }
    EventCounter.signal(bell.rawValue)
  }

  var deviceID: UInt32 { 2 }
  var features: FeatureSet { offered }
  var configurationSize: Int { 64 }
  var configurationGeneration: UInt32 { state.withLock { $0.generation } }
  func accepts(_ features: FeatureSet) -> Bool { true }
  func negotiated(_ features: FeatureSet) { state.withLock { $0.calls.append(.negotiated(features)) } }

  func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    state.withLock { state in
      (0..<count).map { index in
        let (at, overflow) = offset.addingReportingOverflow(index)
        return !overflow && state.configuration.indices.contains(at) ? state.configuration[at] : 0
      }
    }
  }

  /// Byte 32 may be written by the driver, as in a block device.
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool {
    guard offset == 32, bytes.count == 1 else { return false }
    state.withLock {
      $0.configuration[32] = bytes[0]
      $0.calls.append(.wrote(offset, bytes))
    }
    return true
  }

  func start(_ activation: Activation) {
    let queue = activation.queue
    if broken.contains(queue) { return raise(.notStarted(queue: queue, .badSize(activation.configuration.size))) }
    state.withLock {
      precondition($0.running[queue] == nil, "a running queue was started")
      $0.running[queue] = activation
      $0.calls.append(.start(queue, activation.configuration, available: activation.position.available))
    }
    raise(.started(queue: queue))
  }

  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind) { raise(.prepared) }
  func unprepare() {}

  func release(queue: Int) { state.withLock { $0.calls.append(.release(queue)) } }

  func stop(queue: Int) {
    let isHeld = state.withLock { state in
      if state.running[queue] != nil { state.calls.append(.stop(queue)) }
      return state.isHoldingStops
    }
    if !isHeld { finishStop(queue) }
  }

  /// From now on a queue that is told to stop does not, as if its medium hung.
  func holdStops() { state.withLock { $0.isHoldingStops = true } }

  /// The queue's last request is answered, so it stops.
  func finishStop(_ queue: Int) {
    guard let activation = state.withLock({ $0.running.removeValue(forKey: queue) }) else { return }
    let progress = state.withLock { $0.progress }
    raise(.stopped(queue: queue, progress.map { QueuePosition(available: $0, used: $0) } ?? activation.position))
  }

  func leave(queue: Int) { state.withLock { _ = $0.left.insert(queue) } }
  var leftQueues: Set<Int> { state.withLock { $0.left } }

  func replaceCall(queue: Int, _ call: CallSink) {
    state.withLock { $0.running[queue]?.call = call }
    call.signal()
  }
  func replaceFailure(queue: Int, _ failure: CallSink) {}

  func reset() {
    state.withLock {
      precondition($0.running.isEmpty, "a device was reset while queues ran")
      $0.configuration[32] = 32
      $0.calls.append(.reset)
    }
  }

  var eventDescriptor: Int32 { bell.rawValue }

  func takeEvents() -> [DeviceEvent] {
    EventCounter.drain(bell.rawValue)
    return state.withLock {
      let events = $0.events
      $0.events = []
      return events
    }
  }
}
