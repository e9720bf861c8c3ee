/// One pass over queues without a running driver: everything available is processed, then the device stops. For golden tests,
/// for teaching, and for authors of drivers.
internal import Glibc
public import SystemPackage
public import VirtioCore
internal import VirtioRegisters

/// The outcome of one pass over one queue.
public struct OnceOutcome: Hashable, Sendable {
  public let queue: Int
  /// Chains that were available.
  public let available: Int
  /// Chains that were used.
  public let used: Int
  /// Why the queue could not continue.
  public let failure: QueueError?
}

extension MemoryFileDevice {
  /// Processes everything available in the queues that are ready according to the registers in the file, and ends. Without
  /// DRIVER_OK nothing is processed (virtio 2.1.2).
  ///
  /// - Returns: one outcome for each ready queue.
  public func runOnce() -> [OnceOutcome] {
    let image = file.control.loadState()
    let recorded = RegisterModel.restore(image, file.layout.interface, face: face).registers
    let standing = PackedStanding(image)
    let pass = OncePass(recorded.readyQueues, in: file.memory, features: recorded.features) { standing.position(of: $0) }
    var events = attachAndWait()
    if registers.isLive {
      pass.wait {
        for case .queueFailed(let queue, let error) in handleEvents() { pass.fail(queue, error) }
      }
    }
    events += detachAndWait()
    for case .queueFailed(let queue, let error) in events { pass.fail(queue, error) }
    for (queue, error) in startFailures { pass.fail(queue, error) }
    return pass.outcomes()
  }

  /// One pass over queues in a memory without registers: the caller gives their configurations.
  ///
  /// - Parameters:
  ///   - features: the features that the driver is assumed to have accepted; a subset of those that the device offers.
  ///   - queues: their numbers and configurations; numbers below the device's queue count, each once.
  public static func runOnce(
    _ device: any VirtioDevice, memory: GuestMemory, features: FeatureSet,
    queues: [(queue: Int, configuration: QueueConfiguration)]
  ) throws(Errno) -> [OnceOutcome] {
    let pass = OncePass(queues, in: memory, features: features) { _ in .start }
    device.negotiated(features)
    let attended = AttendedDevice(device)
    for (queue, configuration) in queues {
      let used = features.contains(.packedRing) ? nil : RingIndices(configuration, in: memory)?.used ?? 0
      let activation = Activation(
        queue: queue, memory: memory, features: features, configuration: configuration,
        position: used.map { QueuePosition(available: $0, used: $0) } ?? .start(features),
        kick: .eventCounter(try .eventCounter()), call: .none,
        publishesInOrder: true)
      do { try attended.startAndWait(activation) } catch { pass.fail(queue, error) }
    }
    func takeFailures() {
      for case .queueFailed(let queue, let error) in attended.takeEvents() { pass.fail(queue, error) }
    }
    pass.wait(takeFailures)
    attended.stopAllAndWait()
    takeFailures()
    return pass.outcomes()
  }
}

/// The state of every queue before the pass, and its progress.
private final class OncePass {
  /// The state of a ring before the pass.
  private enum Before {
    case split(RingIndices)
    case packed(PackedLook)

    /// Chains that were available.
    var available: Int {
      switch self {
      case .split(let indices): Int(indices.available &- indices.used)
      case .packed(let look): look.heads.count
      }
    }
  }

  private struct Queue {
    let number: Int
    let configuration: QueueConfiguration
    let before: Before?
    var failure: QueueError?
  }

  private var queues: [Queue]
  private let memory: GuestMemory

  /// - Parameter position: the position of a packed queue; `nil`: it will not be started.
  init(
    _ queues: [(queue: Int, configuration: QueueConfiguration)], in memory: GuestMemory, features: FeatureSet,
    position: (Int) -> PackedPosition?
  ) {
    self.memory = memory
    self.queues = queues.map { queue, configuration in
      let before: Before? =
        if features.contains(.packedRing) {
          position(queue).flatMap { PackedLook(configuration, in: memory, from: $0) }.map { .packed($0) }
        } else {
          RingIndices(configuration, in: memory).map { .split($0) }
        }
      return Queue(number: queue, configuration: configuration, before: before)
    }
  }

  func fail(_ number: Int, _ error: QueueError) {
    guard let index = queues.firstIndex(where: { $0.number == number }), queues[index].failure == nil else { return }
    queues[index].failure = error
  }

  /// Waits until every queue has used all chains that were available at the beginning, or has failed. Chains that a driver adds
  /// in the meantime are not awaited, so the wait ends. It polls ten times per millisecond: the driver may have suppressed
  /// notifications, so they cannot be waited for.
  func wait(_ takeFailures: () -> Void) {
    while true {
      takeFailures()
      let isDone = queues.allSatisfy { queue in
        guard queue.failure == nil, let before = queue.before else { return true }
        return used(queue) >= before.available
      }
      if isDone { return }
      usleep(100)
    }
  }

  private func used(_ queue: Queue) -> Int {
    switch queue.before {
    case .split(let before)?: return RingIndices(queue.configuration, in: memory).map { Int($0.used &- before.used) } ?? 0
    case .packed(let look)?: return look.usedCount(in: memory)
    case nil: return 0
    }
  }

  func outcomes() -> [OnceOutcome] {
    queues.map { queue in
      OnceOutcome(
        queue: queue.number, available: queue.before?.available ?? 0, used: used(queue),
        failure: queue.failure)
    }
  }
}

extension MemoryFileDevice {
  /// Attaches, and waits until that is done.
  /// - Returns: the events in the meantime.
  private func attachAndWait() -> [DeviceEvent] {
    var events: [DeviceEvent] = []
    attach()
    while whenCarriedOut != nil { events += waitForEvents() }
    return events
  }

  /// Drains every queue, however long that takes, and detaches.
  /// - Returns: the events in the meantime.
  private func detachAndWait() -> [DeviceEvent] {
    var events: [DeviceEvent] = []
    attended.stopAll()
    while !attended.isAtRest { events += waitForEvents() }
    detach()
    return events
  }

  private func waitForEvents() -> [DeviceEvent] {
    var entry = pollfd(fd: device.eventDescriptor, events: Int16(POLLIN), revents: 0)
    _ = unsafe poll(&entry, 1, -1)
    return handleEvents()
  }
}
