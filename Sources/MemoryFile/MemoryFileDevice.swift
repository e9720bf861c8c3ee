/// The device's end of a memory file: serves the mailbox and the events of any device until it is told to stop.
internal import CLinux
internal import Glibc
public import Sockets
internal import SystemPackage
public import VirtioCore
public import VirtioRegisters

/// One device on one file. Everything here happens on the thread that runs the loop, which is the device's transport thread;
/// queues are the device's own business.
///
///     let file = try MemoryFile.create(path: "guest.mem", memorySize: 64 << 20, maximumQueues: 4)
///     let transport = try MemoryFileDevice(file: file, device: device, log: { print($0) })
///     try transport.open(in: loop)
///     try loop.run()                                      // until a handler calls transport.close { loop.stop() }
///
/// Nothing here waits for a queue: a register write that starts or stops some is answered when their answers are there.
///
/// A file whose driver was live is taken up where it stands: every ready queue starts with its available index at
/// `used.idx`, which works because queues publish in order.
public final class MemoryFileDevice {
  public let file: MemoryFile
  let device: any VirtioDevice
  let attended: AttendedDevice
  let log: (String) -> Void
  private let notice: (String) -> Void
  /// Called on the loop's thread when a driver is ready (DRIVER_OK), with what it has agreed on. A driver can cause this at its
  /// pleasure.
  public var whenLive: ((FeatureSet) -> Void)?
  /// Is told of each access of a driver, on the loop's thread; `nil`: nobody.
  public var registerWatch: (any RegisterWatch)?
  let face: RegisterFace
  var registers: RegisterModel
  /// Where the notifications of queues and of the configuration went when that was looked at last.
  var routes: [InterruptSource: InterruptRoute] = [:]
  /// Queues that could not be started since `attach`, or since the driver's last reset.
  var startFailures: [Int: QueueError] = [:]
  /// Where packed queues stand that the driver has set up before: known of those that were stopped in order.
  var standing = PackedStanding()
  /// Queues that the driver resets while it drives the others. It looks at QueueReset until that is over.
  private var resetting: Set<Int> = []
  /// Queues that take nothing any more until the driver's next reset.
  var failedQueues: Set<Int> = []
  /// Queues that ran, with what they would be started with, when they were asked to stop for a successor; `nil`: they were not.
  var stoppedForHandOver: [(queue: Int, configuration: QueueConfiguration)]?
  /// What is still to be executed of what the driver asked for last, or of what `attach` found.
  private var steps: [Step] = []
  /// Queues whose answers come before the next step, but for starts, which do not wait for each other.
  private var awaited: Set<Int> = []
  /// What is to be done when no step is left.
  var whenCarriedOut: (() -> Void)?
  /// The number of the last request answered; our own copy, because the word in the file is anybody's.
  var answered: UInt32 = 0

  /// How far this device has come with its file.
  enum Phase {
    case new
    case serving
    /// What is being executed is finished, then the queues stop.
    case pausing
    case paused
    /// Queues that were asked to stop have to answer before they are started again.
    case resuming
    /// What is slow is being done, or has been.
    case preparing
    case holding
    case held
    case closing
    /// It has nothing to do with the file any more.
    case over
  }

  var phase = Phase.new
  /// The device's role on the file goes with this device.
  var ownsRole: Bool
  /// In which it serves, from the beginning to `over`.
  private var loop: EventLoop?
  private var watch: DoorbellWatch?
  private var mailbox: EventLoop.Registration?
  private var deviceEvents: EventLoop.Registration?
  private var whenClosed: (() -> Void)?
  var whenPaused: (() -> Void)?
  var whenPrepared: ((MemoryFileError?) -> Void)?
  var whenHeld: ((MemoryFileError?) -> Void)?
  /// Why a takeover cannot be.
  var holdFailure: MemoryFileError?
  /// The device's configuration changed before the driver could be told.
  var owesConfigurationChange = false

  /// Takes the file for this device.
  ///
  /// - Parameters:
  ///   - withheld: what the registers could offer by themselves and are not to (`RegisterFace.withheld`).
  ///   - takesOver: the file comes from the process that serves it (`MemoryFile.adopt`), and with it the device's role, which
  ///     stays that process's until `release`. Such a device begins with `hold`, not with `open`.
  ///   - log: takes one line for readers at a time, without a line feed, on the thread that runs. A driver can cause lines at
  ///     its
  ///     pleasure: meter them.
  ///   - notice: takes what only helps the operator of a device that continues being served; `nil`: `log` does.
  public init(
    file: MemoryFile, device: any VirtioDevice, withholding withheld: FeatureSet = [], takesOver: Bool = false,
    log: @escaping (String) -> Void = { _ in }, notice: ((String) -> Void)? = nil
  ) throws(MemoryFileError) {
    guard device.queueCount <= file.layout.maximumQueues else {
      throw .tooManyQueues(path: file.path, device: device.queueCount, file: file.layout.maximumQueues)
    }
    // For the description that has the role already this changes nothing.
    guard file.take(.device) else {
      throw .deviceAlreadyThere(path: file.path, process: file.control.deviceProcess.loadRelaxed())
    }
    self.file = file
    self.device = device
    ownsRole = !takesOver
    attended = AttendedDevice(device)
    self.log = log
    self.notice = notice ?? log
    let control = file.control
    var face = RegisterFace(
      device, interruptStatus: { control.interruptStatus.loadAcquire() },
      isHeldBack: { control.silent($0).heldBack.loadAcquire() & 1 != 0 })
    face.withheld = withheld
    self.face = face
    registers = RegisterModel(file.layout.interface, face: face)
  }

  deinit { giveUpRole() }

  /// It answers its driver, and nobody is about to take over.
  public var isServing: Bool { phase == .serving }

  private func giveUpRole() {
    guard ownsRole else { return }
    ownsRole = false
    file.release(.device)
  }

  /// Begins to serve; the loop keeps the device alive until it is closed.
  public func open(in loop: EventLoop) throws(MemoryFileError) {
    precondition(phase == .new && ownsRole, "a device is opened once, and one that takes over is held first")
    try register(in: loop)
    phase = .serving
    attach()
  }

  /// Waits for the mailbox and for the device's events from now on, or for neither.
  func register(in loop: EventLoop) throws(MemoryFileError) {
    self.loop = loop
    do {
      let watch = try DoorbellWatch(Doorbell(file.control.requestSequence), name: "mailbox")
      self.watch = watch
      mailbox = try loop.add(watch.rung.rawValue) { _ in self.mailboxRang() }
      deviceEvents = try loop.add(device.eventDescriptor) { _ in self.eventsPending() }
    } catch {
      unregister()
      throw .system(path: file.path, action: "wait for the mailbox of", error)
    }
  }

  private func stopListening() {
    if let mailbox { loop?.remove(mailbox) }
    mailbox = nil
    watch?.stop()
    watch = nil
  }

  func unregister() {
    stopListening()
    if let deviceEvents { loop?.remove(deviceEvents) }
    deviceEvents = nil
    loop = nil
  }

  /// Looks at the mailbox once more, whatever was seen of it.
  func lookAgain() { if let watch { EventCounter.signal(watch.rung.rawValue) } }

  private func mailboxRang() {
    guard let watch else { return }
    EventCounter.drain(watch.rung.rawValue)
    if !serveMailbox() { lookAgain() }
  }

  private func eventsPending() {
    let wasBusy = whenCarriedOut != nil
    handleEvents()
    // What the driver asked for in the meantime was seen and not looked at.
    if wasBusy, whenCarriedOut == nil { lookAgain() }
  }

  /// Stops every queue and releases the file; the driver's requests wait for the next device. The registers' state stays in the
  /// file, so that the next device continues where this one stopped. A device that only holds leaves no trace.
  ///
  /// - Parameter whenClosed: called once on the loop's thread when every queue has stopped, which may be at once.
  public func close(then whenClosed: @escaping () -> Void) {
    guard phase != .over else { return whenClosed() }
    beginToClose()
    self.whenClosed = whenClosed
    advance()
  }

  /// Does not wait any longer for queues to stop.
  ///
  /// - Returns: queues that are abandoned, because their medium did not answer.
  @discardableResult
  public func abandon() -> [Int] {
    guard phase != .over else { return [] }
    beginToClose()
    whenClosed = nil
    let left = attended.leaveAll()
    end()
    // Who was left may still write to the guest's memory: the role goes with this object, not earlier.
    if left.isEmpty { giveUpRole() }
    return left
  }

  private func beginToClose() {
    if phase == .preparing { attended.unprepare() }
    phase = .closing
    stopListening()
    steps = []
    whenCarriedOut = nil
    whenPaused = nil
    whenPrepared = nil
    whenHeld = nil
    attended.stopAll()
  }

  private func end() {
    phase = .over
    if ownsRole { detach() }
    unregister()
  }

  /// Continues with what waits for queues to stop.
  func advance() {
    switch phase {
    case .closing where attended.isAtRest:
      end()
      giveUpRole()
      let closed = whenClosed
      whenClosed = nil
      closed?()
    case .pausing where whenCarriedOut == nil:
      stoppedForHandOver = stoppedForHandOver ?? registers.readyQueues.filter { attended.state(of: $0.queue) == .running }
      attended.stopAll()
      if attended.isAtRest { paused() }
    case .resuming where attended.isAtRest: startAgain()
    case .holding where holdFailure != nil && whenCarriedOut == nil:
      attended.stopAll()
      if attended.isAtRest { holdFailed() }
    case .new, .serving, .pausing, .paused, .resuming, .preparing, .holding, .held, .closing, .over: break
    }
  }

  // MARK: Beginning and end

  /// Brings registers and device to where the file says a driver is, and says that we are here when that is so.
  func attach() {
    (startFailures, failedQueues) = ([:], [])
    let (restored, effects, restoration) = restoreRegisters()
    registers = restored
    registerWatch?.begins(with: restored)
    answered = file.control.responseSequence.loadAcquire()
    file.control.deviceProcess.storeRelaxed(UInt32(getpid()))
    carryOut(effects) { self.attached(restoration) }
  }

  /// What the file says of registers and queues.
  func restoreRegisters() -> (registers: RegisterModel, effects: [RegisterEffect], restoration: RegisterRestoration) {
    let image = file.control.loadState()
    standing = PackedStanding(image)
    return RegisterModel.restore(image, file.layout.interface, face: face)
  }

  /// Writes down what the driver has told the registers, and where its queues stand.
  func storeState() {
    var image = registers.image
    for index in image.queues.indices { image.queues[index].position = standing.position(of: index) }
    file.control.storeState(image)
  }

  private func attached(_ restoration: RegisterRestoration) {
    switch restoration {
    case .complete: break
    case .suspended:
      log("the driver on \(file.path) had suspended the device in an earlier process, so it has to reset the device")
    case .refused: log("the driver on \(file.path) had negotiated what this disk does not offer: it has to reset the device")
    }
    announce()
    // Our predecessor may have died between publishing and notifying, and in need of a reset nobody was told.
    if registers.isInUse {
      for (queue, _) in registers.readyQueues { callSink(queue).signal() }
    }
    if registers.status.contains(.needsReset) { notifyConfigurationChange() }
  }

  /// Says that another device is here now.
  func announce() {
    let control = file.control
    storeState()
    control.deviceState.storeRelease(ControlBlock.DeviceState.serving)
    Doorbell(control.deviceEpoch).ring()
  }

  /// Says that nobody is here. What the driver has set up stays in the file.
  func detach() {
    handleEvents()
    storeState()
    file.control.deviceState.storeRelease(ControlBlock.DeviceState.absent)
    _ = unsafe clinux_futex_wake(file.control.deviceState.address, Int32.max)
  }

  // MARK: Steps

  private enum Step {
    case effect(RegisterEffect)
    /// The queue has stopped: its next ring is a new one.
    case forgetQueue(Int)
    /// All queues have stopped: the device forgets its driver.
    case forgetDriver

    var isStart: Bool { if case .effect(.startQueue) = self { true } else { false } }
  }

  /// Begins to do what the registers ask for; what needs the answer of a queue continues when that comes.
  func carryOut(_ effects: [RegisterEffect], then whenDone: @escaping () -> Void) {
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
    case .effect(.live): whenLive?(registers.features)
    case .effect(.startQueue(let queue, let configuration)): start(queue, configuration)
    case .effect(.stopQueue(let queue)):
      stop(queue)
      steps.insert(.forgetQueue(queue), at: 0)
    // It stands where it stood when it is started again.
    case .effect(.pauseQueue(let queue)): stop(queue)
    case .effect(.resetQueue(let queue)):
      // Not waited for: the driver's other queues continue in the meantime, and so does its mailbox.
      if attended.stop(queue: queue) { resetting.insert(queue) } else { queueResetFinished(queue) }
    case .effect(.notify(let queue)): file.control.kick(queue).ring()
    case .effect(.interruptRoutesChanged): reroute()
    case .effect(.configurationChanged): notifyConfigurationChange()
    case .effect(.acknowledgeInterrupt(let bits)): file.control.interruptStatus.subtract(bits)
    case .effect(.configWrite(let offset, let bytes)):
      if device.writeConfiguration(at: offset, bytes) { registers.configurationWritten(at: offset, bytes) }
    case .effect(.reset):
      attended.stopAll()
      resetting = []
      awaited = Set(attended.busyQueues)
      steps.insert(.forgetDriver, at: 0)
    case .forgetQueue(let queue): forget(queue)
    case .forgetDriver:
      device.reset()
      device.forgetDriver()
      (startFailures, failedQueues) = ([:], [])
      standing = PackedStanding()
      file.control.interruptStatus.storeRelease(0)
      forgetHeldBack([.configuration] + (0..<device.queueCount).map { .queue($0) })
    }
  }

  private func queueResetFinished(_ queue: Int) {
    resetting.remove(queue)
    registers.queueResetFinished(queue)
    forget(queue)
    failedQueues.remove(queue)
    storeState()
  }

  /// Its next ring is a new one.
  private func forget(_ queue: Int) {
    standing.forget(queue)
    forgetHeldBack([.queue(queue)])
  }

  private func stop(_ queue: Int) { if attended.stop(queue: queue) { awaited.insert(queue) } }

  private func start(_ queue: Int, _ configuration: QueueConfiguration) {
    // What was used is done and what is above was not, even if it was started: entries are published in order. In a ring fresh
    // from its driver both are zero (virtio 4.2.3.2: the driver zeroes the queue's memory).
    let position: QueuePosition
    if registers.features.contains(.packedRing) {
      guard let known = standing.start(queue) else {
        startFailures[queue] = .positionLost
        return fail(queue, .positionLost)
      }
      // Before it runs: after a death, a successor must not continue from here. One that is held changes nothing yet.
      if phase != .holding { storeState() }
      position = QueuePosition(available: known, used: known)
    } else {
      let used = RingIndices(configuration, in: file.memory)?.used ?? 0
      position = QueuePosition(available: used, used: used)
    }
    awaited.insert(queue)
    var activation = Activation(
      queue: queue, memory: file.memory, features: registers.features, configuration: configuration, position: position,
      kick: .doorbell(file.control.kick(queue)), call: callSink(queue), publishesInOrder: true)
    activation.isHeld = phase == .holding
    // A driver that finds its device again is told in `attached`; a driver's first interrupt stands for a used buffer (virtio
    // 4.2.2.1).
    activation.notifiesAtStart = false
    attended.start(activation)
    // One that is held notifies nobody yet.
    if phase != .holding { callHeldBack(queue) }
  }

  // MARK: Events

  /// - Returns: what happened.
  @discardableResult
  func handleEvents() -> [DeviceEvent] {
    let events = attended.takeEvents()
    for event in events {
      switch event {
      case .started(let queue): awaited.remove(queue)
      case .stopped(let queue, let position):
        standing.stopped(queue, position)
        awaited.remove(queue)
        if resetting.contains(queue) { queueResetFinished(queue) }
      case .notStarted(let queue, _) where resetting.contains(queue): queueResetFinished(queue)
      case .notStarted(let queue, let error):
        awaited.remove(queue)
        startFailures[queue] = error
        fail(queue, error)
      // Nothing of this device is the driver's business yet.
      case .queueFailed(let queue, let error) where isBeforeRelease: fail(queue, error)
      case .configurationChanged where isBeforeRelease: owesConfigurationChange = true
      // What a queue ran into before a reset that is being executed concerns nobody any more.
      case .queueFailed where isForgetting: break
      case .queueFailed(let queue, _) where resetting.contains(queue): break
      case .queueFailed(let queue, let error):
        fail(queue, error)
        storeState()
      case .configurationChanged:
        if registers.configurationChanged() { notifyConfigurationChange() }
      case .notice(let text): notice(text)
      // Its addresses are guest addresses.
      case .translationMissed, .withdrawn: break
      case .prepared: prepared(nil)
      case .notPrepared(let error): prepared(.notPrepared(path: file.path, error))
      }
    }
    goOn()
    advance()
    return events
  }

  private var isBeforeRelease: Bool { phase == .holding || phase == .held || !ownsRole }

  private var isForgetting: Bool { steps.contains { if case .forgetDriver = $0 { true } else { false } } }

  func fail(_ queue: Int, _ error: QueueError) {
    failedQueues.insert(queue)
    guard !isBeforeRelease else {
      holdFailure = holdFailure ?? .queueNotTakenOver(path: file.path, queue: queue, error)
      return
    }
    log("queue \(queue) of \(file.path) stopped, until the driver resets the device: \(error)")
    if registers.needReset() { notifyConfigurationChange() }
  }
}
