/// The device's end of a memory file: serves the mailbox and the events of any device until it is told to stop.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VirtioCore
internal import VirtioRegisters

/// One device on one file. Everything here happens on the thread that calls `run`, which is the device's transport thread;
/// queues are the device's own business.
///
///     let file = try MemoryFile.create(path: "guest.mem", memorySize: 64 << 20, maximumQueues: 4)
///     let transport = try MemoryFileDevice(file: file, device: device, log: { print($0) })
///     try transport.run(until: signalDescriptor)          // returns when the descriptor is readable, queues drained
///
/// Nothing here waits for a queue: a register write that starts or stops some is answered when their answers are there.
///
/// A file whose driver was live is taken up where it stands: every ready queue starts with its available index at
/// `used.idx`, which works because queues publish in order.
public final class MemoryFileDevice {
  public let file: MemoryFile
  let device: any VirtioDevice
  private let attended: AttendedDevice
  let log: (String) -> Void
  private let notice: (String) -> Void
  let face: RegisterFace
  var registers: MMIORegisters
  /// Queues that could not be started since `attach`, or since the driver's last reset.
  var startFailures: [Int: QueueError] = [:]
  /// What is still to be carried out of what the driver asked for last, or of what `attach` found.
  private var steps: [Step] = []
  /// Queues whose answers come before the next step, but for starts, which do not wait for each other.
  private var awaited: Set<Int> = []
  /// What is to be done when no step is left.
  private var whenCarriedOut: (() -> Void)?
  /// The number of the last request answered; our own copy, because the word in the file is anybody's.
  private var answered: UInt32 = 0

  /// Takes the file for this device.
  ///
  /// - Parameters:
  ///   - log: takes one line for people at a time, without a line feed, on the thread that runs. A driver can cause lines at its
  ///     pleasure: meter them.
  ///   - notice: takes what only helps the operator of a device that goes on being served; `nil`: `log` does.
  public init(
    file: MemoryFile, device: any VirtioDevice, log: @escaping (String) -> Void = { _ in }, notice: ((String) -> Void)? = nil
  ) throws(MemoryFileError) {
    guard device.queueCount <= file.layout.maximumQueues else {
      throw .tooManyQueues(path: file.path, device: device.queueCount, file: file.layout.maximumQueues)
    }
    guard file.take(.device) else {
      throw .deviceAlreadyThere(path: file.path, process: file.control.deviceProcess.loadRelaxed())
    }
    self.file = file
    self.device = device
    attended = AttendedDevice(device)
    self.log = log
    self.notice = notice ?? log
    let interruptStatus = file.control.interruptStatus
    face = RegisterFace(device, interruptStatus: { interruptStatus.loadAcquire() })
    registers = MMIORegisters(face: face)
  }

  deinit { file.release(.device) }

  /// Serves until `stop` becomes readable (a signalfd, an eventfd, the end of a pipe), then drains and returns. The
  /// registers' state stays in the file, so that the next device goes on where this one stopped.
  ///
  /// - Parameters:
  ///   - drainLimit: how long draining may last; `nil`: for as long as the medium takes.
  ///   - asked: called when `stop` is readable, to take what made it so; if it is readable once more, draining ends at once.
  ///     `nil`: it is not looked at again.
  /// - Returns: queues that were left behind, because their medium did not answer.
  @discardableResult
  public func run(
    until stop: Int32, drainLimit: Duration? = nil, asked: (() -> Void)? = nil
  ) throws(MemoryFileError) -> [Int] {
    let waiter: DoorbellWatch
    do { waiter = try DoorbellWatch(Doorbell(file.control.requestSequence), name: "mailbox") } catch {
      throw .system(path: file.path, action: "wait for the mailbox of", error)
    }
    defer { waiter.stop() }
    attach()
    var polled = [waiter.rung.rawValue, device.eventDescriptor, stop].map { number in
      pollfd(fd: number, events: Int16(POLLIN), revents: 0)
    }
    while true {
      try wait(&polled, milliseconds: -1)
      if polled[1].revents != 0 {
        let wasBusy = whenCarriedOut != nil
        handleEvents()
        // What the driver asked for meanwhile was seen and not looked at.
        if wasBusy, whenCarriedOut == nil { EventCounter.signal(waiter.rung.rawValue) }
      }
      if polled[0].revents != 0 {
        EventCounter.drain(waiter.rung.rawValue)
        if !serveMailbox() { EventCounter.signal(waiter.rung.rawValue) }
      }
      if polled[2].revents != 0 { break }
    }
    asked?()
    return try drain(&polled, limit: drainLimit, looksAtStop: asked != nil)
  }

  private func wait(_ polled: inout [pollfd], milliseconds: Int32) throws(MemoryFileError) {
    while unsafe poll(&polled, nfds_t(polled.count), milliseconds) < 0 {
      guard errno == EINTR else { throw .system(path: file.path, action: "wait for", Errno(rawValue: errno)) }
    }
  }

  /// Stops every queue; the driver's requests wait for the next device.
  private func drain(
    _ polled: inout [pollfd], limit: Duration?, looksAtStop: Bool
  ) throws(MemoryFileError) -> [Int] {
    let end = limit.map { ContinuousClock.now + $0 }
    polled[0].fd = -1
    if !looksAtStop { polled[2].fd = -1 }
    steps = []
    whenCarriedOut = nil
    attended.stopAll()
    while !attended.isAtRest {
      let left = end.map { Int32(clamping: Int64(max(.zero, $0 - .now) / .milliseconds(1)) + 1) }
      try wait(&polled, milliseconds: left ?? -1)
      if polled[1].revents != 0 { handleEvents() }
      if polled[2].revents != 0 || end.map({ $0 <= .now }) ?? false { break }
    }
    let left = attended.leaveAll()
    detach()
    return left
  }

  // MARK: Beginning and end

  /// Brings registers and device to where the file says a driver is, and says that we are here when that is so.
  private func attach() {
    startFailures = [:]
    let (restored, effects, restoration) = MMIORegisters.restore(file.control.loadState(), face: face)
    registers = restored
    answered = file.control.responseSequence.loadAcquire()
    file.control.deviceProcess.storeRelaxed(UInt32(getpid()))
    carryOut(effects) { self.attached(restoration) }
  }

  private func attached(_ restoration: MMIORegisters.Restoration) {
    let control = file.control
    if restoration == .refused {
      log("the driver on \(file.path) had agreed on what this disk cannot do: it has to reset the device")
    }
    control.storeState(registers.image)
    control.deviceState.storeRelease(ControlBlock.DeviceState.serving)
    Doorbell(control.deviceEpoch).ring()
    // Our predecessor may have died between publishing and notifying, and in need of a reset nobody was told.
    if registers.status.contains(.driverOK) {
      for (queue, _) in registers.readyQueues { callSink(queue).signal() }
    }
    if registers.status.contains(.needsReset) { notifyConfigurationChange() }
  }

  /// Says that nobody is here. What the driver has set up stays in the file.
  private func detach() {
    handleEvents()
    file.control.storeState(registers.image)
    file.control.deviceState.storeRelease(ControlBlock.DeviceState.absent)
    _ = unsafe clinux_futex_wake(file.control.deviceState.address, Int32.max)
  }

  /// For one pass: attaches, and waits until that is done.
  /// - Returns: what happened meanwhile.
  func attachAndWait() -> [DeviceEvent] {
    var events: [DeviceEvent] = []
    attach()
    while whenCarriedOut != nil { events += waitForEvents() }
    return events
  }

  /// For one pass: drains every queue, however long that takes, and detaches.
  /// - Returns: what happened meanwhile.
  func detachAndWait() -> [DeviceEvent] {
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

  // MARK: Mailbox

  /// Answers what is asked, one thing after the other. A driver can ask without pause, so the loop ends by itself and the
  /// poll looks at the rest.
  /// - Returns: false when there may be more.
  private func serveMailbox() -> Bool {
    let control = file.control
    for _ in 0..<64 {
      // What is being carried out still is answered first.
      guard whenCarriedOut == nil else { return true }
      let sequence = control.requestSequence.loadAcquire()
      guard sequence != answered else { return true }
      // Each word is read once; nothing in the file is looked at again while the request is carried out.
      let offset = control.requestOffset.loadRelaxed()
      let width = control.requestWidth.loadRelaxed()
      let isWrite = control.requestWrite.loadRelaxed()
      let value = control.requestValue.loadRelaxed()
      if ![1, 2, 4, 8].contains(width) || isWrite > 1 {
        answer(sequence, 0, ControlBlock.ResponseStatus.refused)
      } else if isWrite == 1 {
        carryOut(registers.write(offset: offset, width: Int(width), value: value)) {
          // Before the answer: what the driver believes done, a successor must find.
          control.storeState(self.registers.image)
          self.answer(sequence, 0, ControlBlock.ResponseStatus.done)
        }
      } else {
        answer(sequence, registers.read(offset: offset, width: Int(width)), ControlBlock.ResponseStatus.done)
      }
    }
    return false
  }

  private func answer(_ sequence: UInt32, _ value: UInt64, _ status: UInt32) {
    let control = file.control
    control.responseValue.storeRelaxed(value)
    control.responseStatus.storeRelaxed(status)
    answered = sequence
    control.responseSequence.storeRelease(sequence)
    _ = unsafe clinux_futex_wake(control.responseSequence.address, Int32.max)
  }

  // MARK: Steps

  private enum Step {
    case effect(MMIORegisters.Effect)
    /// The queue has stopped: its reset is done.
    case queueResetFinished(Int)
    /// All queues have stopped: the device forgets its driver.
    case forgetDriver

    var isStart: Bool { if case .effect(.startQueue) = self { true } else { false } }
  }

  /// Begins to do what the registers ask for; what needs the answer of a queue goes on when that comes.
  private func carryOut(_ effects: [MMIORegisters.Effect], then whenDone: @escaping () -> Void) {
    steps = effects.map { .effect($0) }
    whenCarriedOut = whenDone
    goOn()
  }

  private func goOn() {
    while let step = steps.first, awaited.isEmpty || step.isStart {
      steps.removeFirst()
      perform(step)
    }
    guard steps.isEmpty, awaited.isEmpty, let done = whenCarriedOut else { return }
    whenCarriedOut = nil
    done()
  }

  private func perform(_ step: Step) {
    switch step {
    case .effect(.featuresFixed(let features)): device.negotiated(features)
    case .effect(.live): break
    case .effect(.startQueue(let queue, let configuration)): start(queue, configuration)
    case .effect(.stopQueue(let queue)): stop(queue)
    case .effect(.resetQueue(let queue)):
      stop(queue)
      steps.insert(.queueResetFinished(queue), at: 0)
    case .effect(.notify(let queue)): file.control.kick(queue).ring()
    case .effect(.acknowledgeInterrupt(let bits)): file.control.interruptStatus.subtract(bits)
    case .effect(.configWrite(let offset, let bytes)):
      if device.writeConfiguration(at: offset, bytes) { registers.configurationWritten(at: offset, bytes) }
    case .effect(.reset):
      attended.stopAll()
      awaited = Set(attended.busyQueues)
      steps.insert(.forgetDriver, at: 0)
    case .queueResetFinished(let queue): registers.queueResetFinished(queue)
    case .forgetDriver:
      device.reset()
      startFailures = [:]
      file.control.interruptStatus.storeRelease(0)
    }
  }

  private func stop(_ queue: Int) { if attended.stop(queue: queue) { awaited.insert(queue) } }

  private func start(_ queue: Int, _ configuration: QueueConfiguration) {
    // What was used is done and what is above was not, whoever started it: entries are published in order. In a ring fresh
    // from its driver both are zero (virtio 4.2.3.2: the driver zeroes the queue's memory).
    let used = RingIndices(configuration, in: file.memory)?.used ?? 0
    awaited.insert(queue)
    attended.start(
      Activation(
        queue: queue, memory: file.memory, features: registers.features, configuration: configuration,
        position: QueuePosition(available: used, used: used), kick: .doorbell(file.control.kick(queue)),
        call: callSink(queue), publishesInOrder: true))
  }

  private func callSink(_ queue: Int) -> CallSink {
    .doorbell(file.control.call(queue), interruptStatus: file.control.interruptStatus)
  }

  // MARK: Events

  /// - Returns: what happened.
  @discardableResult
  func handleEvents() -> [DeviceEvent] {
    let events = attended.takeEvents()
    for event in events {
      switch event {
      case .started(let queue), .stopped(let queue, _): awaited.remove(queue)
      case .notStarted(let queue, let error):
        awaited.remove(queue)
        startFailures[queue] = error
        fail(queue, error)
      // What a queue ran into before a reset that is being carried out concerns nobody any more.
      case .queueFailed where isForgetting: break
      case .queueFailed(let queue, let error):
        fail(queue, error)
        file.control.storeState(registers.image)
      case .configurationChanged:
        if registers.status.contains(.driverOK) { notifyConfigurationChange() }
      case .notice(let text): notice(text)
      case .prepared, .notPrepared: break
      }
    }
    goOn()
    return events
  }

  private var isForgetting: Bool { steps.contains { if case .forgetDriver = $0 { true } else { false } } }

  private func fail(_ queue: Int, _ error: QueueError) {
    log("queue \(queue) of \(file.path) stopped, until the driver resets the device: \(error)")
    if registers.needReset() { notifyConfigurationChange() }
  }

  private func notifyConfigurationChange() {
    file.control.interruptStatus.formUnion(MMIORegisters.configurationInterrupt)
    file.control.configuration.ring()
  }
}
