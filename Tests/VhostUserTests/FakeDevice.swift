/// A device without a disk, and a server for it on its own thread.
import CLinux
import Foundation
import Synchronization
import SystemPackage
import TestSupport
import VirtioCore

@testable import Sockets
@testable import VhostUser

/// Records what happens to it. Its queues answer nothing, but their positions move on by one each time they are stopped.
final class FakeDevice: VirtioDevice {
  struct State {
    var deeds: [String] = []
    var activations: [Int: Activation] = [:]
    var events: [DeviceEvent] = []
    var configuration = (0..<96).map { UInt8($0) }
    var negotiations = 0
    var isHoldingStops = false
    var left: Set<Int> = []
  }

  let state = Mutex(State())
  private let eventCounter: OwnedDescriptor

  let features: FeatureSet

  init(features: FeatureSet = Rig.features) {
    self.features = features
    do { eventCounter = try .eventCounter() } catch { preconditionFailure("\(error)") }
  }

  var deviceID: UInt32 { 2 }
  var queueCount: Int { 4 }
  var maximumQueueSize: UInt16 { 1024 }
  var configurationSize: Int { 96 }
  var configurationGeneration: UInt32 { 0 }
  var eventDescriptor: Int32 { eventCounter.rawValue }

  func accepts(_ features: FeatureSet) -> Bool { true }
  func negotiated(_ features: FeatureSet) { state.withLock { $0.negotiations += 1 } }

  func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    state.withLock { state in
      (offset..<offset + count).map { state.configuration.indices.contains($0) ? state.configuration[$0] : 0 }
    }
  }

  /// Byte 32 may be written by the driver, like a block device's writeback.
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool {
    guard offset == 32, bytes.count == 1 else { return false }
    state.withLock { $0.configuration[32] = bytes[0] }
    return true
  }

  func start(_ activation: Activation) {
    state.withLock {
      $0.deeds.append("start \(activation.queue) at \(activation.position.available)")
      $0.activations[activation.queue] = activation
    }
    raise(.started(queue: activation.queue))
  }

  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind) { raise(.prepared) }
  func unprepare() {}

  func release(queue: Int) { state.withLock { $0.deeds.append("release \(queue)") } }

  func stop(queue: Int) {
    let isHeld = state.withLock {
      $0.deeds.append("stop \(queue)")
      return $0.isHoldingStops
    }
    if !isHeld { finishStop(queue) }
  }

  /// From now on a queue that is told to stop does not, as if its medium hung.
  func holdStops() { state.withLock { $0.isHoldingStops = true } }

  /// The queue's last request is answered, so it stops.
  func finishStop(_ queue: Int) {
    guard let activation = state.withLock({ $0.activations.removeValue(forKey: queue) }) else { return }
    let index = activation.position.available &+ 1
    raise(.stopped(queue: queue, QueuePosition(available: index, used: index)))
  }

  func leave(queue: Int) { state.withLock { _ = $0.left.insert(queue) } }
  var leftQueues: Set<Int> { state.withLock { $0.left } }

  func replaceCall(queue: Int, _ call: CallSink) {
    state.withLock {
      $0.deeds.append("call \(queue)")
      $0.activations[queue]?.call = call
    }
    call.signal()
  }

  func replaceFailure(queue: Int, _ failure: CallSink) { state.withLock { $0.activations[queue]?.failure = failure } }
  func reset() { state.withLock { $0.deeds.append("reset") } }

  func takeEvents() -> [DeviceEvent] {
    EventCounter.drain(eventDescriptor)
    return state.withLock { state in
      defer { state.events = [] }
      return state.events
    }
  }

  /// Raises an event.
  func raise(_ event: DeviceEvent) {
    state.withLock { $0.events.append(event) }
    EventCounter.signal(eventDescriptor)
  }

  var deeds: [String] { state.withLock(\.deeds) }
  var running: Set<Int> { state.withLock { Set($0.activations.keys) } }
}

/// A server's events, for the test's thread to check.
final class EventLog: Sendable {
  private let log = Mutex<[ServerEvent]>([])
  var events: [ServerEvent] { log.withLock(\.self) }
  func append(_ event: ServerEvent) { log.withLock { $0.append(event) } }

  func contains(_ wanted: (ServerEvent) -> Bool) -> Bool { events.contains(where: wanted) }
}

/// A server in an event loop on its own thread.
final class RunningServer: Sendable {
  let log = EventLog()
  private let stop: OwnedDescriptor
  private let done = DispatchSemaphore(value: 0)

  /// - Parameter serve: makes the servers, on the loop's thread.
  init(_ serve: @escaping @Sendable (EventLoop, EventLog) throws -> [BackendServer]) {
    stop = TestSupport.eventCounter()
    let ready = DispatchSemaphore(value: 0)
    Thread.detachNewThread { [log, stop, done] in
      do {
        let loop = try EventLoop()
        _ = try loop.add(stop.rawValue) { _ in
          EventCounter.drain(stop.rawValue)
          loop.stop()
        }
        let servers = try serve(loop, log)
        for server in servers { try server.open() }
        ready.signal()
        try loop.run()
        var open = servers.count
        for server in servers {
          server.close {
            open -= 1
            if open == 0 { loop.stop() }
          }
        }
        try loop.run()
      } catch {
        preconditionFailure("\(error)")
      }
      done.signal()
    }
    ready.wait()
  }

  convenience init(_ device: FakeDevice, path: String) {
    self.init { loop, log in
      [
        BackendServer(device: device, on: .listening(try Listener(path: path)), in: loop) { log.append($0) }
      ]
    }
  }

  /// Like SIGTERM for the real program: returns when everything is stopped.
  func close() {
    EventCounter.signal(stop.rawValue)
    done.wait()
  }
}
