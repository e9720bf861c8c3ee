/// A device beside the account of its queues: what was requested and what was answered.
internal import CLinux
internal import Glibc

/// A device, and an account of its queues.
///
/// For a transport: knows which queues are about to start, run or are about to stop, so that nothing is requested twice and
/// what is still to come can be waited for. Used from the transport's thread alone.
public final class AttendedDevice {
  /// How far a queue has come.
  public enum QueueState: Hashable, Sendable {
    /// Not started, or stopped again.
    case idle
    /// Asked to start.
    case starting
    /// It was started and serves requests.
    case running
    /// Asked to stop.
    case stopping
    /// Given up.
    case left
  }

  /// The device; queues are started and stopped through the methods here alone.
  public let device: any VirtioDevice
  private var states: [QueueState]
  /// Events that came while an answer was waited for.
  private var backlog: [DeviceEvent] = []
  /// Asked to prepare, and the answer is still to come.
  public private(set) var isPreparing = false

  /// - Parameter device: one whose queues are all idle.
  public init(_ device: any VirtioDevice) {
    self.device = device
    states = Array(repeating: .idle, count: device.queueCount)
  }

  /// How far a queue has come. - Parameter queue: 0 … queueCount − 1.
  public func state(of queue: Int) -> QueueState { states[queue] }

  /// Queues whose answer is still to come, or that run.
  public var busyQueues: [Int] { states.indices.filter { ![.idle, .left].contains(states[$0]) } }

  /// Every queue has answered its stop, or was never started.
  public var isAtRest: Bool { busyQueues.isEmpty }

  /// Asks for a start, of a queue that is idle.
  public func start(_ activation: Activation) {
    precondition(states[activation.queue] == .idle, "a queue was started before it had stopped")
    states[activation.queue] = .starting
    device.start(activation)
  }

  /// Makes ready what is slow about starting these queues. Answered with `prepared` or `notPrepared`.
  public func prepare(_ queues: [Int], memory: GuestMemory, isRecorded: Bool, isPacked: Bool = false) {
    precondition(!isPreparing, "queues were prepared again before the answer")
    isPreparing = true
    device.prepare(queues, memory: memory, kind: QueueKind(isPacked: isPacked, isRecorded: isRecorded))
  }

  /// Releases what was prepared and not started. An answer that is still to come does not come any more.
  public func unprepare() {
    isPreparing = false
    device.unprepare()
    backlog.removeAll(where: \.isPreparation)
  }

  /// Lets every queue begin that was started held and is not being stopped.
  public func releaseAll() {
    for queue in states.indices where [.starting, .running].contains(states[queue]) { device.release(queue: queue) }
  }

  /// Asks for a stop, unless that was requested already.
  ///
  /// - Returns: whether an answer will come: false when the queue does not run.
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

  /// Gives up what is not idle.
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

  /// What happened since the last call.
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

/// For programs with one device and nothing else to do. A server never waits like this.
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
  /// - Returns: where it stands; `nil` when it did not run.
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

  /// Stops every queue and waits for all of them. What happened in the meantime is for `takeEvents`.
  public func stopAllAndWait() {
    for queue in states.indices { _ = stopAndWait(queue: queue) }
  }

  /// Sleeps until an event of this kind is there, and takes it; the others stay for `takeEvents`.
  private func wait(for isAnswer: (DeviceEvent) -> Bool) -> DeviceEvent {
    while true {
      backlog += fetch()
      if let index = backlog.firstIndex(where: isAnswer) { return backlog.remove(at: index) }
      var entry = pollfd(fd: device.eventDescriptor, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&entry, 1, -1)
    }
  }
}
