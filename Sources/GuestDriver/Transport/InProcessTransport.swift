/// No transport at all: drives any device of this process directly, with event counters for lines. What a register model does
/// for a real driver is done here with the same `Negotiation`.
internal import CLinux
internal import Glibc
public import VirtioCore

/// The shortest path from a driver to a device, and the one for tests.
public final class InProcessTransport: DriverTransport {
  public let name = "in process"
  public let memory: DriverMemory
  private let device: any VirtioDevice
  private let attended: AttendedDevice
  private let deviceMemory: GuestMemory
  private var negotiation: Negotiation
  private var queues: [Queue] = []
  private var configurationChanges = 0
  private var isLive = false

  private struct Queue {
    var configuration: QueueConfiguration
    let kick: OwnedDescriptor
    let call: OwnedDescriptor
    let failure: OwnedDescriptor
    var isRunning = false
  }

  /// The device sees the driver's own mappings.
  public init(device: any VirtioDevice, memory: DriverMemory) throws(GuestMemoryError) {
    self.device = device
    attended = AttendedDevice(device)
    self.memory = memory
    // There are no registers in between with which to suspend the device.
    negotiation = Negotiation(offered: device.features.subtracting(.suspend))
    deviceMemory = try GuestMemory(
      memory.regions.map {
        GuestRegion(start: $0.start, size: UInt64($0.size), mapping: $0.mapping, offset: $0.offset)
      })
  }

  public func deviceID() -> UInt32 { device.deviceID }

  public func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    device.readConfiguration(at: offset, count: count)
  }

  public func writeConfiguration(at offset: Int, _ bytes: [UInt8]) {
    _ = device.writeConfiguration(at: offset, bytes)
  }

  public func configurationGeneration() -> UInt32 { device.configurationGeneration }

  public func status() -> DeviceStatus {
    takeEvents()
    return negotiation.status
  }

  public func setStatus(_ status: DeviceStatus) throws(DriverError) {
    for effect in negotiation.writeStatus(status.rawValue, deviceAccepts: { device.accepts($0) }) {
      switch effect {
      case .reset:
        attended.stopAllAndWait()
        device.reset()
        device.forgetDriver()
        queues = []
        isLive = false
      case .featuresFixed(let features): device.negotiated(features)
      case .live:
        isLive = true
        for index in queues.indices { try start(index) }
      case .suspended, .resumed: break
      }
    }
  }

  public func reset() throws(DriverError) { try setStatus([]) }

  public func offeredFeatures() -> FeatureSet { negotiation.offered }

  public func acceptFeatures(_ features: FeatureSet) {
    negotiation.acceptWord(0, UInt32(truncatingIfNeeded: features.rawValue))
    negotiation.acceptWord(1, UInt32(truncatingIfNeeded: features.rawValue >> 32))
  }

  public func queueCount() -> Int { device.queueCount }
  public func maximumQueueSize(_ queue: Int) -> UInt16 { queue < device.queueCount ? device.maximumQueueSize : 0 }

  public func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines] {
    guard configurations.count <= device.queueCount else {
      throw .refused("the device has \(device.queueCount) queues, not \(configurations.count)")
    }
    queues = []
    for configuration in configurations {
      do {
        queues.append(
          Queue(
            configuration: configuration, kick: try .eventCounter(), call: try .eventCounter(), failure: try .eventCounter()))
      } catch { throw .refused("eventfd failed: \(error)") }
    }
    if isLive { for index in queues.indices { try start(index) } }
    return queues.map { .eventCounters(kick: $0.kick, call: $0.call) }
  }

  private func start(_ index: Int) throws(DriverError) {
    let queue = queues[index]
    let start = QueueStanding.start(RingFormat(negotiation.accepted))
    let activation = Activation(
      queue: index, memory: deviceMemory, features: negotiation.accepted, configuration: queue.configuration,
      position: QueuePosition(available: start.available, used: start.used), kick: .eventCounter(queue.kick),
      call: .eventCounter(queue.call), failure: .eventCounter(queue.failure))
    do {
      try attended.startAndWait(activation)
      queues[index].isRunning = true
    } catch {
      // As over a real transport, an invalid ring makes the device ask for a reset, which the driver sees in the status.
      needReset()
      EventCounter.signal(queue.failure.rawValue)
    }
  }

  public func resetQueue(_ index: Int) { _ = stopQueue(index) }

  public func enableQueue(_ index: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    queues[index].configuration = configuration
    try start(index)
  }

  public func deleteQueues() {
    for index in queues.indices where queues[index].isRunning { _ = attended.stopAndWait(queue: index) }
    queues = []
  }

  /// Stops one queue, and returns where it stands; `nil` if it was not running.
  public func stopQueue(_ index: Int) -> QueuePosition? {
    queues[index].isRunning = false
    return attended.stopAndWait(queue: index)
  }

  private func needReset() { if negotiation.needReset() { configurationChanges += 1 } }

  private func takeEvents() {
    for event in attended.takeEvents() {
      switch event {
      case .queueFailed: needReset()
      case .configurationChanged: configurationChanges += 1
      // Every start and every stop here waits for its own answer.
      case .started, .notStarted, .stopped, .prepared, .notPrepared, .notice: break
      // A device in the same process knows the driver's addresses.
      case .translationMissed, .withdrawn: break
      }
    }
  }

  public func waitForConfigurationChange(milliseconds: Int) -> Bool {
    waitForEvents(milliseconds: milliseconds) { configurationChanges > 0 }
    defer { configurationChanges = 0 }
    return configurationChanges > 0
  }

  public func waitForFailure(queue: Int, milliseconds: Int) -> Bool {
    waitForEvents(milliseconds: milliseconds) { negotiation.status.contains(.needsReset) }
    return negotiation.status.contains(.needsReset)
  }

  private func waitForEvents(milliseconds: Int, until done: () -> Bool) {
    let end = ContinuousClock.now + .milliseconds(milliseconds)
    takeEvents()
    while !done() {
      let left = (end - .now).milliseconds
      guard left > 0 else { return }
      var one = pollfd(fd: device.eventDescriptor, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&one, 1, Int32(clamping: left))
      takeEvents()
    }
  }
}
