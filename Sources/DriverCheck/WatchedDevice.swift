/// A device whose queues are watched. Everything else is forwarded to the device inside.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Used by a transport as the device itself is, from one thread.
final class WatchedDevice: VirtioDevice, @unchecked Sendable {
  private let inner: any VirtioDevice
  private let findings: DriverFindings
  private let kickLimit: Duration
  /// Made with the first queue.
  private var relay: KickRelay?
  /// What is known of queues that were started, by queue.
  private var running: [Int: Running] = [:]

  /// Queues that were started since the driver's last reset.
  private var started: Set<Int> = []

  private struct Running {
    var limits: RequestLimits
    var features: FeatureSet
    var configuration: QueueConfiguration
  }

  init(_ inner: any VirtioDevice, _ findings: DriverFindings, kickLimit: Duration) {
    self.inner = inner
    self.findings = findings
    self.kickLimit = kickLimit
  }

  // MARK: Queues

  func start(_ activation: Activation) {
    checkLayout(activation)
    let features = activation.features
    let isPacked = features.contains(.packedRing)
    let limits = RequestLimits(features, configuration: configuration)
    let kicks = KickAccount(activation.queue, features, findings, limit: kickLimit)
    let look = RingLook(activation.memory, activation.configuration, isPacked: isPacked)
    let setup = WatchedSetup(
      queue: activation.queue, memory: activation.memory, features: features, configuration: activation.configuration,
      findings: findings, limits: limits, kicks: kicks, look: look,
      isFresh: started.insert(activation.queue).inserted)
    var watched = activation
    watched.watch = isPacked ? PackedWatch(setup) : SplitWatch(setup)
    // If no thread or descriptor is available, kicks go straight to the device, and nothing is known about them.
    if relay == nil { relay = try? KickRelay() }
    if let relay, let kick = try? relay.add(activation.queue, activation.kick, kicks, look) { watched.kick = kick }
    running[activation.queue] = Running(limits: limits, features: features, configuration: activation.configuration)
    inner.start(watched)
  }

  private func checkLayout(_ activation: Activation) {
    let configuration = activation.configuration
    let parts = [configuration.descriptorTable, configuration.availableRing, configuration.usedRing]
    let isPacked = activation.features.contains(.packedRing)
    let alignments: [UInt64] = isPacked ? [16, 4, 4] : [16, 2, 4]
    let isAligned = zip(parts, alignments).allSatisfy { $0.isAligned(to: $1) }
    findings.judge(
      isPacked ? "d.packed.align.1" : "d.split.align.1", isAligned, queue: activation.queue, "the queue's addresses",
      parts.map(\.description).joined(separator: ", "))
  }

  private var configuration: [UInt8] { inner.readConfiguration(at: 0, count: 96) }

  /// The driver wrote a notification to a register, and waits for the answer.
  ///
  /// Its position may be old: a driver computes the value while it holds the queue, and writes it later, when another CPU
  /// may have advanced. But it is always a position in the ring.
  func notified(_ queue: Int, _ value: UInt32) {
    guard let queueRuns = running[queue], queueRuns.features.contains(.notificationData) else { return }
    guard queueRuns.features.contains(.packedRing) else { return }
    let next = PackedPosition(rawValue: UInt16(value >> 16))
    let size = Int(queueRuns.configuration.size)
    findings.judge(
      "d.packed.desc.3", next.slot < size, queue: queue, "the notification", "it says slot \(next.slot) of a ring of \(size)")
  }

  func takeEvents() -> [DeviceEvent] {
    let events = inner.takeEvents()
    for event in events {
      switch event {
      case .stopped(let queue, _), .notStarted(let queue, _): forget(queue)
      case .configurationChanged:
        updateLimits()
      case .started, .prepared, .notPrepared, .queueFailed, .translationMissed, .withdrawn, .notice: break
      }
    }
    return events
  }

  private func updateLimits() {
    guard !running.isEmpty else { return }
    let now = configuration
    for queue in running.values { queue.limits.update(now) }
  }

  private func forget(_ queue: Int) {
    relay?.remove(queue)
    running[queue] = nil
  }

  func stop(queue: Int) {
    relay?.lookAway(queue)
    inner.stop(queue: queue)
  }

  func leave(queue: Int) {
    relay?.lookAway(queue)
    inner.leave(queue: queue)
    forget(queue)
  }

  /// A driver that reads it relies on the answer, even before it is notified of a change.
  func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    let bytes = inner.readConfiguration(at: offset, count: count)
    updateLimits()
    return bytes
  }

  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind) {
    var watched = kind
    watched.isWatched = true
    inner.prepare(queues, memory: memory, kind: watched)
  }

  // MARK: Forwarded

  var deviceID: UInt32 { inner.deviceID }
  var features: FeatureSet { inner.features }
  var queueCount: Int { inner.queueCount }
  var maximumQueueSize: UInt16 { inner.maximumQueueSize }
  var configurationSize: Int { inner.configurationSize }
  var configurationGeneration: UInt32 { inner.configurationGeneration }
  var leftQueues: Set<Int> { inner.leftQueues }
  var eventDescriptor: Int32 { inner.eventDescriptor }

  func accepts(_ features: FeatureSet) -> Bool { inner.accepts(features) }
  func negotiated(_ features: FeatureSet) { inner.negotiated(features) }
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool { inner.writeConfiguration(at: offset, bytes) }
  func unprepare() { inner.unprepare() }
  func release(queue: Int) { inner.release(queue: queue) }
  func replaceCall(queue: Int, _ call: CallSink) { inner.replaceCall(queue: queue, call) }
  func replaceFailure(queue: Int, _ failure: CallSink) { inner.replaceFailure(queue: queue, failure) }
  func reset() {
    started = []
    inner.reset()
  }
  func forgetDriver() { inner.forgetDriver() }
}
