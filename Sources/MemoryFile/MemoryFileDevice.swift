/// The device's end of a memory file: serves the mailbox and the events of any device until it is told to stop.
internal import CLinux
internal import Glibc
public import Sockets
internal import SystemPackage
public import VirtioCore
public import VirtioRegisters

/// One device on one file. Everything here runs on the thread of the event loop, which is the device's transport thread; queues
/// run on the device's own threads.
///
///     let file = try MemoryFile.create(path: "guest.mem", memorySize: 64 << 20, maximumQueues: 4)
///     let transport = try MemoryFileDevice(file: file, device: device, log: { print($0) })
///     try transport.open(in: loop)
///     try loop.run()                                      // until a handler calls transport.close { loop.stop() }
///
/// Nothing here blocks on a queue: a register write that starts or stops queues is answered when they have answered.
///
/// If the file has a live driver, the device continues where the previous one stopped: every ready queue starts with its
/// available index at `used.idx`, which works because queues publish in order.
public final class MemoryFileDevice {
  public let file: MemoryFile
  let device: any VirtioDevice
  let attended: AttendedDevice
  let log: (String) -> Void
  private let notice: (String) -> Void
  /// Called on the loop's thread when a driver is ready (DRIVER_OK), with the negotiated features. A driver can cause this as
  /// often as it likes.
  public var whenLive: ((FeatureSet) -> Void)?
  /// Is told of each access of a driver, on the loop's thread; `nil`: nobody is.
  public var registerWatch: (any RegisterWatch)?
  let face: RegisterFace
  var registers: RegisterModel
  /// The routes of notifications that were applied last.
  var routes: [InterruptSource: InterruptRoute] = [:]
  /// Queues that could not be started since `attach`, or since the driver's last reset.
  var startFailures: [Int: QueueError] = [:]
  /// The positions of packed queues that were set up before; known for those that were stopped cleanly.
  var standing = PackedStanding()
  /// Queues that the driver resets while it uses the others. It polls QueueReset until that is done.
  private var resetting: Set<Int> = []
  /// Queues that broke, and pop nothing more until the driver's next reset.
  var failedQueues: Set<Int> = []
  /// Queues that ran when they were asked to stop for a successor, with their configurations; `nil`: they were not asked.
  var stoppedForHandOver: [(queue: Int, configuration: QueueConfiguration)]?
  /// The remaining steps of the driver's last request, or of `attach`.
  private var steps: [Step] = []
  /// Queues whose answers are awaited before the next step, except before a start: starts do not wait for each other.
  private var awaited: Set<Int> = []
  /// Called when no step is left.
  var whenCarriedOut: (() -> Void)?
  /// The number of the last request answered; a private copy, because the driver can write to the word in the file.
  var answered: UInt32 = 0

  /// The life cycle of this device on its file.
  enum Phase {
    case new
    case serving
    /// The current request is finished, then the queues stop.
    case pausing
    case paused
    /// Queues that were asked to stop have to answer before they are started again.
    case resuming
    /// The slow part of starting queues is being done, or has been.
    case preparing
    case holding
    case held
    case closing
    /// It no longer uses the file.
    case over
  }

  var phase = Phase.new
  /// This device has the device's role on the file, and gives it up when it ends.
  var ownsRole: Bool
  /// The loop in which it serves, from the beginning until `over`.
  private var loop: EventLoop?
  private var watch: DoorbellWatch?
  private var mailbox: EventLoop.Registration?
  private var deviceEvents: EventLoop.Registration?
  private var whenClosed: (() -> Void)?
  var whenPaused: (() -> Void)?
  var whenPrepared: ((MemoryFileError?) -> Void)?
  var whenHeld: ((MemoryFileError?) -> Void)?
  /// Why a takeover failed.
  var holdFailure: MemoryFileError?
  /// The device's configuration changed before the driver could be notified.
  var owesConfigurationChange = false

  /// Takes the device's role on the file.
  ///
  /// - Parameters:
  ///   - withheld: features of the registers that are not to be offered (`RegisterFace.withheld`).
  ///   - takesOver: the file comes from the process that serves it (`MemoryFile.adopt`), and with it the device's role, which
  ///     that process keeps until `release`. Such a device begins with `hold`, not with `open`.
  ///   - log: called with one line at a time, without a line feed, on the loop's thread. A driver can cause lines as often as
  ///     it likes: limit their rate.
  ///   - notice: called with messages that help the operator while the device continues to serve; `nil`: they go to `log`.
  public init(
    file: MemoryFile, device: any VirtioDevice, withholding withheld: FeatureSet = [], takesOver: Bool = false,
    log: @escaping (String) -> Void = { _ in }, notice: ((String) -> Void)? = nil
  ) throws(MemoryFileError) {
    guard device.queueCount <= file.layout.maximumQueues else {
      throw .tooManyQueues(path: file.path, device: device.queueCount, file: file.layout.maximumQueues)
    }
    // This also succeeds if the open file description has the role already.
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

  /// It answers its driver, and no takeover is in progress.
  public var isServing: Bool { phase == .serving }

  private func giveUpRole() {
    guard ownsRole else { return }
    ownsRole = false
    file.release(.device)
  }

  /// Starts serving; the loop keeps the device alive until it is closed.
  public func open(in loop: EventLoop) throws(MemoryFileError) {
    precondition(phase == .new && ownsRole, "a device is opened once, and one that takes over is held first")
    try register(in: loop)
    phase = .serving
    attach()
  }

  /// Registers the mailbox and the device's events with the loop; if one fails, neither is registered.
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

  /// Has the mailbox checked once more.
  func lookAgain() { if let watch { EventCounter.signal(watch.rung.rawValue) } }

  private func mailboxRang() {
    guard let watch else { return }
    EventCounter.drain(watch.rung.rawValue)
    if !serveMailbox() { lookAgain() }
  }

  private func eventsPending() {
    let wasBusy = whenCarriedOut != nil
    handleEvents()
    // A request that came in the meantime was signalled, but not handled.
    if wasBusy, whenCarriedOut == nil { lookAgain() }
  }

  /// Stops every queue and releases the file; the driver's requests wait for the next device. The state of the registers stays
  /// in the file, so that the next device continues where this one stopped. A device that only held its queues changes nothing.
  ///
  /// - Parameter whenClosed: called once on the loop's thread when every queue has stopped, which may be immediately.
  public func close(then whenClosed: @escaping () -> Void) {
    guard phase != .over else { return whenClosed() }
    beginToClose()
    self.whenClosed = whenClosed
    advance()
  }

  /// Stops waiting for queues to stop.
  ///
  /// - Returns: queues that are abandoned, because their medium did not answer.
  @discardableResult
  public func abandon() -> [Int] {
    guard phase != .over else { return [] }
    beginToClose()
    whenClosed = nil
    let left = attended.leaveAll()
    end()
    // Abandoned queues may still write to the guest's memory: the role is given up with this object, not earlier.
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

  /// Continues whatever waits for queues to stop.
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

  /// Restores registers and device from the file, and announces the device when that is done.
  func attach() {
    (startFailures, failedQueues) = ([:], [])
    let (restored, effects, restoration) = restoreRegisters()
    registers = restored
    registerWatch?.begins(with: restored)
    answered = file.control.responseSequence.loadAcquire()
    file.control.deviceProcess.storeRelaxed(UInt32(getpid()))
    carryOut(effects) { self.attached(restoration) }
  }

  /// The registers and queues according to the file.
  func restoreRegisters() -> (registers: RegisterModel, effects: [RegisterEffect], restoration: RegisterRestoration) {
    let image = file.control.loadState()
    standing = PackedStanding(image)
    return RegisterModel.restore(image, file.layout.interface, face: face)
  }

  /// Stores the state of the registers and the positions of the queues in the file.
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
    // The predecessor may have died between publishing and notifying, or before it could notify of a needed reset.
    if registers.isInUse {
      for (queue, _) in registers.readyQueues { callSink(queue).signal() }
    }
    if registers.status.contains(.needsReset) { notifyConfigurationChange() }
  }

  /// Announces in the file that a new device is there.
  func announce() {
    let control = file.control
    storeState()
    control.deviceState.storeRelease(ControlBlock.DeviceState.serving)
    Doorbell(control.deviceEpoch).ring()
  }

  /// Marks in the file that no device is there. The driver's settings stay in the file.
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

  /// Begins to execute effects of the registers; a step that needs the answer of a queue continues when that comes.
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
    // It keeps its position for the next start.
    case .effect(.pauseQueue(let queue)): stop(queue)
    case .effect(.resetQueue(let queue)):
      // Not awaited: the driver's other queues, and the mailbox, continue in the meantime.
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
    // Entries are published in order, so everything below used.idx is done and everything above is not, even if it was begun.
    // In a new ring both are zero (virtio 4.2.3.2: the driver zeroes the queue's memory).
    let position: QueuePosition
    if registers.features.contains(.packedRing) {
      guard let known = standing.start(queue) else {
        startFailures[queue] = .positionLost
        return fail(queue, .positionLost)
      }
      // Stored before it runs: after a crash, a successor must not continue from this position. A held queue changes nothing
      // yet.
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
    // After a restart of the device the driver is notified in `attached`; otherwise its first interrupt must mean a used buffer
    // (virtio 4.2.2.1).
    activation.notifiesAtStart = false
    attended.start(activation)
    // A held queue sends no notifications yet.
    if phase != .holding { callHeldBack(queue) }
  }

  // MARK: Events

  /// - Returns: the events that were handled.
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
      // The driver must not see anything of this device yet.
      case .queueFailed(let queue, let error) where isBeforeRelease: fail(queue, error)
      case .configurationChanged where isBeforeRelease: owesConfigurationChange = true
      // A failure before the reset that is being executed no longer matters.
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
