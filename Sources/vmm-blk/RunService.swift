/// `vmm-blk run` without `--once`: a disk on a memory file until the process is asked to end, or another one takes over.
internal import ArgumentParser
internal import Control
internal import Glibc
internal import Logging
internal import MemoryFile
internal import MetricsExport
internal import OperatorWords
internal import Sandbox
internal import Sockets
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore
internal import VirtioRegisters

/// Used on the loop's thread.
final class RunService {
  private let command: RunCommand
  private let signals: TerminationSignals
  /// SIGHUP: the size of the image is checked.
  private let hangup: TerminationSignals
  /// SIGUSR2: a trace starts or ends.
  private let traceFile: TraceFile?
  private let log: ServeLog
  private let loop: EventLoop
  private let manager: ServiceManager
  private var meter = Meter()
  private var liveMeter = Meter()
  private var control: ServiceControl?
  private lazy var figures = OperatorFigures(of: self)
  private(set) lazy var resizing = OperatorResize(in: loop, log: log)
  private var page: MetricsServer?
  /// What was given up.
  private(set) var sandbox = SandboxReport.off
  private(set) var isEnding = false
  /// The disk as its operator sees it; `nil` before it is served, and when another process serves it.
  private var disk: RunDisk?
  /// A takeover is pending: nothing may interfere.
  private var isTaking = false
  /// A signal to end that arrived in the meantime.
  private var postponed: Int32?
  /// Watches the driver; `nil`: it is not watched.
  private let checks: DriverChecks?

  /// Call it before the device makes threads, which inherit the mask of blocked signals.
  init(_ command: RunCommand) throws {
    self.command = command
    log = ServeLog(command.logging)
    Startup.ignoreStraySignals()
    command.protection.arm()
    signals = try TerminationSignals()
    hangup = try TerminationSignals([SIGHUP])
    traceFile = try command.tracing.open()
    loop = try EventLoop()
    checks = try command.driverCheck.begin()
    manager = ServiceManager(in: loop, log: log)
  }

  private struct Served {
    var device: BlockDevice
    var transport: MemoryFileDevice
    var memory: String { transport.file.path }
  }

  func run() throws {
    let taker = try command.takeover.taker(on: .memoryFile, in: loop, log: log)
    let served: Served
    do { served = try StartupWatch.attend(signals) { try taker.map { try prepare($0) } ?? open() } } catch {
      guard let signal = signals.take() else { throw error }
      return log.note("ending on signal \(signal), before the disk was open")
    }
    if let warning = served.device.engineWarning { log.warn(warning) }
    let listener = try command.takeover.listen()
    // In a takeover, it is opened when the address is free.
    if taker == nil { page = try command.figures.server(of: figures, in: loop) }
    // The loop retains what its handlers retain, including the device with its image, so the socket's file has to be removed
    // explicitly.
    let termination = try loop.add(signals.descriptor) { _ in self.endOnSignal(served) }
    // The loop retains it.
    if let traceFile { _ = try TraceOnSignal(traceFile, of: self, in: loop, log: log) }
    let look = try loop.add(hangup.descriptor) { [self] _ in
      if hangup.take() != nil { resizing.look(at: disks) }
    }
    defer {
      loop.remove(termination)
      loop.remove(look)
      page?.close()
      listener?.removeFile()
      control?.close()
      control?.removeFile()
      control = nil
    }
    do {
      if let taker {
        take(served, from: taker, listener)
      } else {
        try served.transport.open(in: loop)
        disk = RunDisk(device: served.device, transport: served.transport)
        if let listener { control = try ServiceControl(on: listener, for: self, figures, in: loop, log: log) }
        try page?.open()
        enterSandbox()
        say(served)
        ready(served)
      }
      try loop.run()
    } catch {
      // Whatever failed, running queues are stopped before the image is closed.
      end(served)
      try loop.run()
      throw error
    }
    let left = served.transport.abandon()
    if let taker, !taker.hasAny, let failure = taker.failures.first { throw failure }
    let unfinished =
      left.isEmpty ? ImageEnd.unfinished([served.device.image], within: .seconds(command.drainTimeout)) : []
    guard !left.isEmpty || !unfinished.isEmpty else {
      try checks?.finish()
      return
    }
    do { try checks?.finish() } catch { log.warn("\(error)") }
    log.warn(
      "abandoned, because the medium does not answer: \(served.memory) (\(served.device.image.path)): "
        + (left.isEmpty ? "its tables" : ServerEvent.list(left)))
    control?.removeFile()
    People.flush()
    // Releasing the image now would wait for the same medium.
    _exit(ExitStatus.leftBehind.rawValue)
  }

  // MARK: Beginning

  private func open() throws -> Served {
    let memory = try command.memoryPath()
    if let create = command.create {
      let device = try command.disk.makeDevice(on: .memoryFile, patience: signals.patience)
      let file = try MemoryFile.create(
        path: memory, memorySize: create.bytes, memoryBase: GuestAddress(command.memoryBase?.bytes ?? 0),
        maximumQueues: device.queueCount, interface: command.registers?.interface ?? .mmio)
      return try Served(device: device, transport: transport(file, device, isNew: true))
    }
    let file = try MemoryFile.open(path: memory)
    let device = try command.disk.makeDevice(
      on: .memoryFile, queues: file.layout.maximumQueues, patience: signals.patience)
    return try Served(device: device, transport: transport(file, device))
  }

  private func transport(
    _ file: MemoryFile, _ device: BlockDevice, isNew: Bool = false, takesOver: Bool = false
  ) throws(MemoryFileError) -> MemoryFileDevice {
    func make(_ device: any VirtioDevice) throws(MemoryFileError) -> MemoryFileDevice {
      try bare(file, device, takesOver: takesOver)
    }
    let transport: MemoryFileDevice
    if let checks { transport = try checks.watch(device, isNew: isNew, make: make) } else { transport = try make(device) }
    transport.whenLive = { [self] features in
      guard case .pass(let heldBack) = liveMeter.ask() else { return }
      if heldBack > 0 { log.note("\(heldBack) lines were left out") }
      log.note(ServeLog.chosen(features))
    }
    return transport
  }

  private func bare(
    _ file: MemoryFile, _ device: any VirtioDevice, takesOver: Bool
  ) throws(MemoryFileError) -> MemoryFileDevice {
    try MemoryFileDevice(
      file: file, device: device, withholding: command.disk.featureWords.withheldFromRegisters, takesOver: takesOver
    ) { [self] line in
      guard case .pass(let heldBack) = meter.ask() else { return }
      if heldBack > 0 { log.warn("\(heldBack) lines were left out") }
      log.warn(line)
    }
  }

  /// Prepares the disk that the old process serves, while that one continues.
  private func prepare(_ taker: TakeoverTaker) throws -> Served {
    let names = try taker.greet()
    guard let name = names.first, names.count == 1 else {
      throw TakeoverFailure.otherDisks("The running server serves \(names.count) disks, and a memory file is one.")
    }
    var served: Served?
    try taker.prepare(name) { [self] state, list, errands in
      let file = try RunTakenDisk.file(state, list, name: name, path: command.memory ?? name)
      // Without the option, as many queues as there are.
      let device = try command.disk.makeDevice(
        on: .memoryFile, queues: state.file?.device.queues ?? 1, lock: try state.image.lock.map { try list.descriptor($0) },
        serial: state.image.serial, patience: signals.patience)
      let transport = try transport(file, device, takesOver: true)
      served = Served(device: device, transport: transport)
      return RunTakenDisk(name: name, device: device, transport: transport, errands: errands, loop: loop)
    }
    guard let served else { preconditionFailure("a disk that was prepared was made") }
    return served
  }

  private func take(_ served: Served, from taker: TakeoverTaker, _ listener: Listener?) {
    isTaking = true
    taker.takeAll { [self] in
      isTaking = false
      guard taker.hasAny else { return end(served) }
      disk = RunDisk(device: served.device, transport: served.transport)
      do {
        if let listener = listener ?? command.takeover.adopt(from: taker, log) {
          control = try ServiceControl(on: listener, for: self, figures, in: loop, log: log)
        }
      } catch { log.warn("the control socket is not served: \(error)") }
      command.figures.open(of: figures, in: loop, log: log) { [self] in page = $0 }
      enterSandbox()
      say(served)
      ready(served)
      if let postponed { end(served, on: postponed) }
    }
  }

  /// Nothing is opened after this.
  private func enterSandbox() {
    var plan = SandboxPlan(command.protection.sandbox)
    var sockets = [command.takeover.control]
    switch command.figures.metrics {
    case .path(let path): sockets.append(path)
    case .internet: plan.usesInternet = true
    case nil: break
    }
    plan.connects = command.disk.imageServer?.isInternet == true
    plan.places = sockets.compactMap { $0 }.map { path in
      AllowedPlace(FilePath(Takeover.absolute(path)).removingLastComponent().string, for: .sockets)
    }
    plan.places += command.disk.credentials.map { AllowedPlace(Takeover.absolute($0), for: .reading) }
    sandbox = command.protection.enter(plan, log: log)
  }

  // MARK: End

  private func endOnSignal(_ served: Served) {
    guard let signal = signals.take() else { return }
    guard !isEnding, postponed == nil else { return loop.stop() }
    if isTaking { postponed = signal } else { end(served, on: signal) }
  }

  private func end(_ served: Served, on signal: Int32) {
    log.note("ending on signal \(signal); what the driver has set up stays in \(served.memory)")
    end(served)
  }

  private func end(_ served: Served) { end(served.transport) }

  private func end(_ transport: MemoryFileDevice) {
    isEnding = true
    manager.stopping()
    control?.giver.end()
    loop.after(.seconds(command.drainTimeout)) { [loop] in loop.stop() }
    transport.close { [loop] in loop.stop() }
  }

  // MARK: Messages

  private func ready(_ served: Served) { manager.ready("serving \(served.device.image.path) on \(served.memory)") }

  /// Unbuffered, even into a pipe or a file: the parent process may wait for this line.
  private func say(_ served: Served) {
    let (device, memory) = (served.device, served.memory)
    let queues = device.queueCount == 1 ? "1 queue" : "\(device.queueCount) queues"
    People.output.write(
      printable(
        "Serving \(device.image.path) on \(memory) (\(queues), \(device.engineReason)); "
          + "for a driver: vmm-blk guest --memory \(memory) info"))
  }
}

// MARK: For its operator

extension RunService: OperatedService {
  var transport: Takeover.Transport { .memoryFile }
  var disks: [any OperatedDisk] { disk.map { [$0] } ?? [] }
  var leavingDisks: [any OperatedDisk] { [] }

  private static let isOne = OperatorRefusal(
    "a memory file is one disk, which ends with its process: end it with 'drain', and start another 'vmm-blk run' for another disk"
  )

  func add(_ entry: ControlLine, then: @escaping (Result<String, OperatorRefusal>) -> Void) { then(.failure(Self.isOne)) }
  func remove(_ name: String, then: @escaping (Result<Void, OperatorRefusal>) -> Void) { then(.failure(Self.isOne)) }
  func reload(then: @escaping (Result<DiskChange, OperatorRefusal>) -> Void) { then(.failure(Self.isOne)) }

  func drain() {
    guard let disk, !isEnding else { return }
    end(disk.transport)
  }

  func handedOver(_ name: String) {
    disk = nil
    log.note("everything is served by another process, so this one ends")
    loop.stop()
  }
}
