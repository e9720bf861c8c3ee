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
/// A file whose driver was live is taken up where it stands: every ready queue starts with its available index at
/// `used.idx`, which works because queues publish in order.
public final class MemoryFileDevice {
  public let file: MemoryFile
  let device: any VirtioDevice
  let log: (String) -> Void
  let face: RegisterFace
  var registers: MMIORegisters
  /// Queues that could not be started since `attach`, or since the driver's last reset.
  var startFailures: [DeviceEvent] = []
  /// The number of the last request answered; our own copy, because the word in the file is anybody's.
  private var answered: UInt32 = 0

  /// Takes the file for this device.
  ///
  /// - Parameter log: takes one line for people at a time, without a line feed, on the thread that runs. A driver can cause
  ///   lines at its pleasure: meter them.
  public init(
    file: MemoryFile, device: any VirtioDevice, log: @escaping (String) -> Void = { _ in }
  ) throws(MemoryFileError) {
    guard device.queueCount <= file.layout.maximumQueues else {
      throw .tooManyQueues(path: file.path, device: device.queueCount, file: file.layout.maximumQueues)
    }
    guard file.take(.device) else {
      throw .deviceAlreadyThere(path: file.path, process: file.control.deviceProcess.loadRelaxed())
    }
    self.file = file
    self.device = device
    self.log = log
    let interruptStatus = file.control.interruptStatus
    face = RegisterFace(device, interruptStatus: { interruptStatus.loadAcquire() })
    registers = MMIORegisters(face: face)
  }

  deinit { file.release(.device) }

  /// Serves until `stop` becomes readable (a signalfd, an eventfd, the end of a pipe), then drains and returns. The
  /// registers' state stays in the file, so that the next device goes on where this one stopped.
  public func run(until stop: Int32) throws(MemoryFileError) {
    let waiter: DoorbellWatch
    do { waiter = try DoorbellWatch(Doorbell(file.control.requestSequence), name: "mailbox") } catch {
      throw .system(path: file.path, action: "wait for the mailbox of", error)
    }
    defer { waiter.stop() }
    attach()
    defer { detach() }
    var polled = [waiter.rung.rawValue, device.eventDescriptor, stop].map { number in
      pollfd(fd: number, events: Int16(POLLIN), revents: 0)
    }
    while true {
      let result = unsafe poll(&polled, nfds_t(polled.count), -1)
      if result < 0 {
        guard errno == EINTR else { throw .system(path: file.path, action: "wait for", Errno(rawValue: errno)) }
        continue
      }
      if polled[1].revents != 0 { handleEvents() }
      if polled[0].revents != 0 {
        EventCounter.drain(waiter.rung.rawValue)
        if !serveMailbox() { EventCounter.signal(waiter.rung.rawValue) }
      }
      if polled[2].revents != 0 { return }
    }
  }

  // MARK: Beginning and end

  /// Brings registers and device to where the file says a driver is, and says that we are here.
  func attach() {
    let control = file.control
    startFailures = []
    let (restored, effects, restoration) = MMIORegisters.restore(control.loadState(), face: face)
    registers = restored
    answered = control.responseSequence.loadAcquire()
    control.deviceProcess.storeRelaxed(UInt32(getpid()))
    perform(effects)
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

  /// Drains every queue and says that nobody is here. What the driver has set up stays in the file.
  /// - Returns: what happened meanwhile.
  @discardableResult
  func detach() -> [DeviceEvent] {
    for (queue, _) in registers.readyQueues { _ = device.stop(queue: queue) }
    let events = handleEvents()
    file.control.storeState(registers.image)
    file.control.deviceState.storeRelease(ControlBlock.DeviceState.absent)
    _ = unsafe clinux_futex_wake(file.control.deviceState.address, Int32.max)
    return events
  }

  // MARK: Mailbox

  /// Answers what is asked. A driver can ask without pause, so the loop ends by itself and the poll looks at the rest.
  /// - Returns: false when there may be more.
  private func serveMailbox() -> Bool {
    let control = file.control
    for _ in 0..<64 {
      let sequence = control.requestSequence.loadAcquire()
      guard sequence != answered else { return true }
      // Each word is read once; nothing in the file is looked at again while the request is carried out.
      let offset = control.requestOffset.loadRelaxed()
      let width = control.requestWidth.loadRelaxed()
      let isWrite = control.requestWrite.loadRelaxed()
      let value = control.requestValue.loadRelaxed()
      var answer: UInt64 = 0
      var status = ControlBlock.ResponseStatus.done
      if ![1, 2, 4, 8].contains(width) || isWrite > 1 {
        status = ControlBlock.ResponseStatus.refused
      } else if isWrite == 1 {
        perform(registers.write(offset: offset, width: Int(width), value: value))
        // Before the answer: what the driver believes done, a successor must find.
        control.storeState(registers.image)
      } else {
        answer = registers.read(offset: offset, width: Int(width))
      }
      control.responseValue.storeRelaxed(answer)
      control.responseStatus.storeRelaxed(status)
      answered = sequence
      control.responseSequence.storeRelease(sequence)
      _ = unsafe clinux_futex_wake(control.responseSequence.address, Int32.max)
    }
    return false
  }

  private func perform(_ effects: [MMIORegisters.Effect]) {
    for effect in effects {
      switch effect {
      case .featuresFixed(let features): device.negotiated(features)
      case .live: break
      case .startQueue(let queue, let configuration): start(queue, configuration)
      case .stopQueue(let queue): _ = device.stop(queue: queue)
      case .resetQueue(let queue):
        _ = device.stop(queue: queue)
        registers.queueResetFinished(queue)
      case .notify(let queue): file.control.kick(queue).ring()
      case .acknowledgeInterrupt(let bits): file.control.interruptStatus.subtract(bits)
      case .configWrite(let offset, let bytes):
        if device.writeConfiguration(at: offset, bytes) { registers.configurationWritten(at: offset, bytes) }
      case .reset:
        device.reset()
        startFailures = []
        // Events of the time before the reset concern nobody any more.
        _ = device.takeEvents()
        file.control.interruptStatus.storeRelease(0)
      }
    }
  }

  private func start(_ queue: Int, _ configuration: QueueConfiguration) {
    // What was used is done and what is above was not, whoever started it: entries are published in order. In a ring fresh
    // from its driver both are zero (virtio 4.2.3.2: the driver zeroes the queue's memory).
    let used = RingIndices(configuration, in: file.memory)?.used ?? 0
    let activation = Activation(
      queue: queue, memory: file.memory, features: registers.features, configuration: configuration,
      position: QueuePosition(available: used, used: used), kick: .doorbell(file.control.kick(queue)),
      call: callSink(queue), publishesInOrder: true)
    do { try device.start(activation) } catch {
      startFailures.append(.queueFailed(queue: queue, error))
      fail(queue, error)
    }
  }

  private func callSink(_ queue: Int) -> CallSink {
    .doorbell(file.control.call(queue), interruptStatus: file.control.interruptStatus)
  }

  // MARK: Events

  /// - Returns: what happened.
  @discardableResult
  func handleEvents() -> [DeviceEvent] {
    let events = device.takeEvents()
    for event in events {
      switch event {
      case .queueFailed(let queue, let error):
        fail(queue, error)
        file.control.storeState(registers.image)
      case .configurationChanged:
        if registers.status.contains(.driverOK) { notifyConfigurationChange() }
      case .notice(let text): log(text)
      }
    }
    return events
  }

  private func fail(_ queue: Int, _ error: QueueError) {
    log("queue \(queue) of \(file.path) stopped, until the driver resets the device: \(error)")
    if registers.needReset() { notifyConfigurationChange() }
  }

  private func notifyConfigurationChange() {
    file.control.interruptStatus.formUnion(MMIORegisters.configurationInterrupt)
    file.control.configuration.ring()
  }
}
