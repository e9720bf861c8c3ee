/// A device together with the state of its queues: what was requested and what was answered.
internal import CLinux
internal import Glibc

/// A device, and the state of each of its queues.
///
/// For a transport: knows which queues are starting, running or stopping, so that nothing is requested twice and pending
/// answers can be waited for. Used only from the transport's thread.
public final class AttendedDevice {
  /// Where a queue is between start and stop.
  public enum QueueState: Hashable, Sendable {
    /// Not started, or stopped again.
    case idle
    /// Asked to start.
    case starting
    /// Started, and serving requests.
    case running
    /// Asked to stop.
    case stopping
    /// Given up while it was busy (`VirtioDevice.leave`).
    case left
  }

  /// The device; its queues are started and stopped only through the methods here.
  public let device: any VirtioDevice
  private var states: [QueueState]
  /// Events that arrived while waiting for an answer.
  private var backlog: [DeviceEvent] = []
  /// The device was asked to prepare and has not answered yet.
  public private(set) var isPreparing = false

  /// - Parameter device: one whose queues are all idle.
  public init(_ device: any VirtioDevice) {
    self.device = device
    states = Array(repeating: .idle, count: device.queueCount)
  }

  /// The state of a queue. - Parameter queue: 0 … queueCount − 1.
  public func state(of queue: Int) -> QueueState { states[queue] }

  /// Queues that run, or whose answer is pending.
  public var busyQueues: [Int] { states.indices.filter { ![.idle, .left].contains(states[$0]) } }

  /// Every queue has answered its stop, or was never started.
  public var isAtRest: Bool { busyQueues.isEmpty }

  /// Asks the device to start a queue, which must be idle.
  public func start(_ activation: Activation) {
    precondition(states[activation.queue] == .idle, "a queue was started before it had stopped")
    states[activation.queue] = .starting
    device.start(activation)
  }

  /// Does the slow part of starting these queues in advance. Answered with `prepared` or `notPrepared`.
  public func prepare(_ queues: [Int], memory: GuestMemory, isRecorded: Bool, isPacked: Bool = false) {
    precondition(!isPreparing, "queues were prepared again before the answer")
    isPreparing = true
    device.prepare(queues, memory: memory, kind: QueueKind(isPacked: isPacked, isRecorded: isRecorded))
  }

  /// Releases what was prepared and not started. A pending answer is dropped.
  public func unprepare() {
    isPreparing = false
    device.unprepare()
    backlog.removeAll(where: \.isPreparation)
  }

  /// Releases every queue that was started held and is not being stopped.
  public func releaseAll() {
    for queue in states.indices where [.starting, .running].contains(states[queue]) { device.release(queue: queue) }
  }

  /// Asks the device to stop a queue, unless that was requested already.
  ///
  /// - Returns: whether an answer will come: false if the queue does not run.
  @discardableResult
  public func stop(queue: Int) -> Bool {
    switch states[queue] {
    case .idle, .left: return false
    case .stopping: return true
    case .starting, .running:
      states[queue] = .stopping
      device.stop(queue: queue)
      return true
    }
  }

  /// Asks every queue that runs, or is about to, to stop.
  public func stopAll() { for queue in states.indices { stop(queue: queue) } }

  /// Gives up every queue that is not idle.
  ///
  /// - Returns: the queues that were left.
  @discardableResult
  public func leaveAll() -> [Int] {
    let left = busyQueues
    for queue in left {
      states[queue] = .left
      device.leave(queue: queue)
    }
    return left
  }

  /// Events since the last call.
  public func takeEvents() -> [DeviceEvent] {
    let events = backlog + fetch()
    backlog = []
    return events
  }

  private func fetch() -> [DeviceEvent] {
    let events = device.takeEvents()
    for event in events {
      switch event {
      case .started(let queue): if states[queue] == .starting { states[queue] = .running }
      case .notStarted(let queue, _), .stopped(let queue, _): states[queue] = .idle
      case .prepared, .notPrepared: isPreparing = false
      case .queueFailed, .translationMissed, .withdrawn, .configurationChanged, .notice: break
      }
    }
    return events
  }
}

// MARK: Waiting

/// For programs that have one device and nothing else to do. A server never waits like this.
extension AttendedDevice {
  /// Starts a queue and waits for the answer.
  public func startAndWait(_ activation: Activation) throws(QueueError) {
    start(activation)
    let answer = wait { event in
      switch event {
      case .started(activation.queue), .notStarted(activation.queue, _): true
      default: false
      }
    }
    if case .notStarted(_, let error) = answer { throw error }
  }

  /// Prepares queues and waits for the answer.
  public func prepareAndWait(
    _ queues: [Int], memory: GuestMemory, isRecorded: Bool, isPacked: Bool = false
  ) throws(QueueError) {
    prepare(queues, memory: memory, isRecorded: isRecorded, isPacked: isPacked)
    if case .notPrepared(let error) = wait(for: \.isPreparation) { throw error }
  }

  /// Stops a queue and waits for the answer.
  ///
  /// - Returns: its position; `nil` if it did not run.
  public func stopAndWait(queue: Int) -> QueuePosition? {
    guard stop(queue: queue) else { return nil }
    let answer = wait { event in
      switch event {
      case .stopped(queue, _), .notStarted(queue, _): true
      default: false
      }
    }
    guard case .stopped(_, let position) = answer else { return nil }
    return position
  }

  /// Stops every queue and waits for all of them. Other events stay for `takeEvents`.
  public func stopAllAndWait() {
    for queue in states.indices { _ = stopAndWait(queue: queue) }
  }

  /// Sleeps until an event of this kind arrives, and takes it; the others stay for `takeEvents`.
  private func wait(for isAnswer: (DeviceEvent) -> Bool) -> DeviceEvent {
    while true {
      backlog += fetch()
      if let index = backlog.firstIndex(where: isAnswer) { return backlog.remove(at: index) }
      var entry = pollfd(fd: device.eventDescriptor, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&entry, 1, -1)
    }
  }
}
