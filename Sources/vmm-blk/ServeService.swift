/// `vmm-blk serve`: the running server. Disks may be added and removed, and none waits for another.
internal import Control
internal import Glibc
internal import Logging
internal import MetricsExport
internal import OperatorWords
internal import Sandbox
internal import Sockets
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

/// Used on the loop's thread.
final class ServeService {
  let command: ServeCommand
  let log: ServeLog
  let loop: EventLoop
  let manager: ServiceManager
  /// Watches the drivers; `nil`: they are not watched.
  let checks: DriverChecks?
  /// The limit of open files.
  let openFiles: Int
  private let signals: TerminationSignals
  /// SIGUSR1: stalled queues resume.
  private let resumption: TerminationSignals
  /// SIGHUP: the list of disks is read again, and the sizes of images are checked.
  private let hangup: TerminationSignals
  /// SIGUSR2: a trace starts or ends.
  private let traceFile: TraceFile?
  /// The patience of this process while it opens its first disks.
  var patience: OpeningPatience { signals.patience }
  /// In the order in which they were added.
  var served: [ServedDisk] = []
  /// Disks that are being closed, or never will be because their medium does not answer.
  private(set) var leaving: [ServedDisk] = []
  private(set) var control: ServiceControl?
  private(set) lazy var figures = OperatorFigures(of: self)
  private(set) lazy var resizing = OperatorResize(in: loop, log: log)
  private var page: MetricsServer?
  /// What was given up.
  var sandbox = SandboxReport.off
  /// Where images of added disks may be.
  var openable: [String] = []
  /// Servers that added disks may use.
  var servers = ServerPermission()
  private(set) var isEnding = false
  /// Disks are being taken over: until each has an owner, nothing may interfere.
  private var isTaking = false
  /// A signal to end that arrived in the meantime.
  private var postponed: Int32?
  /// The number of lists and images that are being opened, each on its own helper thread, because a medium may never answer.
  var opening = 0
  /// The patience of those who wait for them.
  var patiences: [OpeningPatience] = []
  /// One of them is the list of disks.
  var isReloading = false

  /// Call it before the devices make threads, which inherit the mask of blocked signals.
  init(_ command: ServeCommand) throws {
    self.command = command
    Startup.ignoreStraySignals()
    command.protection.arm()
    signals = try TerminationSignals()
    resumption = try TerminationSignals([SIGUSR1])
    hangup = try TerminationSignals([SIGHUP])
    traceFile = try command.tracing.open()
    log = ServeLog(command.logging)
    openFiles = ServeFileLimit.raise()
    loop = try EventLoop()
    checks = try command.driverCheck.begin()
    manager = ServiceManager(in: loop, log: log)
  }

  func run() throws {
    let list = try StartupWatch.attend(signals) {
      try command.disks.map { try ServeDiskList(file: $0, defaults: command.disk, mayBeEmpty: isOperated) }
    }
    ServeFileLimit.makeRoom(for: list?.disks.map(\.options) ?? [command.disk], limit: openFiles, signals.descriptor)
    let taker = try command.takeover.taker(on: .vhostUser, in: loop, log: log)
    do {
      served = try StartupWatch.attend(signals) { try taker.map { try prepare($0, list) } ?? open(list) }
    } catch {
      guard let signal = signals.take() else { throw error }
      return log.note("ending on signal \(signal), before the disks were open")
    }
    log.noteEngines(of: served.map(\.device))
    // The loop retains what its handlers retain, so the files have to be removed explicitly.
    defer { removeFiles() }
    let listener = try command.takeover.listen()
    // In a takeover, it is opened when the address is free.
    if taker == nil { page = try command.figures.server(of: figures, in: loop) }
    try attendSignals()
    for disk in served { endWithFrontend(disk) }
    do {
      if let taker {
        take(from: taker, listener)
      } else {
        for disk in served { try disk.server.open() }
        if let listener { control = try ServiceControl(on: listener, for: self, figures, in: loop, log: log) }
        try page?.open()
        enterSandbox()
        sayServed()
      }
      try loop.run()
    } catch {
      // Whatever failed, running queues are stopped before the images are closed.
      end()
      try loop.run()
      throw error
    }
    if let taker, !taker.hasAny, let failure = taker.failures.first { throw failure }
    var left = (served + leaving).compactMap { disk -> String? in
      let queues = disk.server.abandon()
      return queues.isEmpty ? nil : "\(disk.place) (\(disk.device.image.path)): \(ServerEvent.list(queues))"
    }
    if left.isEmpty { left = ImageEnd.unfinished((served + leaving).map(\.device.image), within: limit) }
    guard !left.isEmpty else {
      try checks?.finish()
      return
    }
    do { try checks?.finish() } catch { log.warn("\(error)") }
    log.warn("abandoned, because the medium does not answer: " + left.joined(separator: "; "))
    removeFiles()
    People.flush()
    // Releasing the images now would wait for the same medium.
    _exit(ExitStatus.leftBehind.rawValue)
  }

  /// An operator can add disks later.
  private var isOperated: Bool { command.takeover.control != nil }

  private func removeFiles() {
    for disk in served + leaving { disk.socket.removeFile() }
    control?.removeFile()
    page?.close()
  }

  /// A disk on a single connection ends with it: nobody else can connect.
  private func endWithFrontend(_ disk: ServedDisk) {
    guard case .connected = disk.socket else { return }
    disk.server.finished = { [self, unowned disk] in
      close(disk) {}
      if served.isEmpty { loop.stop() }
    }
  }

  // MARK: Signals

  private func attendSignals() throws(Errno) {
    // The loop retains it.
    if let traceFile { _ = try TraceOnSignal(traceFile, of: self, in: loop, log: log) }
    _ = try loop.add(signals.descriptor) { [self] _ in
      guard let signal = signals.take() else { return }
      guard !isEnding, postponed == nil else {
        log.note("ending on signal \(signal) at once")
        return loop.stop()
      }
      if isTaking { postponed = signal } else { end(on: signal) }
    }
    _ = try loop.add(resumption.descriptor) { [self] _ in
      guard resumption.take() != nil else { return }
      log.note("stalled queues resume")
      for disk in served { disk.device.resume() }
    }
    _ = try loop.add(hangup.descriptor) { [self] _ in
      guard hangup.take() != nil, !isTaking else { return }
      resizing.look(at: served)
      guard command.disks != nil else { return }
      reload { [log] result in
        switch result {
        case .success(let change): log.note("\(change)")
        case .failure(let reason): log.warn("nothing changes: \(reason)")
        }
      }
    }
  }

  // MARK: Taking over

  private func take(from taker: TakeoverTaker, _ listener: Listener?) {
    isTaking = true
    taker.takeAll { [self] in
      isTaking = false
      for disk in served where !taker.hasTaken(disk.name) { close(disk) {} }
      guard taker.hasAny else { return loop.stop() }
      do {
        if let listener = listener ?? command.takeover.adopt(from: taker, log) {
          control = try ServiceControl(on: listener, for: self, figures, in: loop, log: log)
        }
      } catch { log.warn("the control socket is not served: \(error)") }
      command.figures.open(of: figures, in: loop, log: log) { [self] in page = $0 }
      enterSandbox()
      sayServed()
      if let postponed { end(on: postponed) }
    }
  }

  // MARK: The end

  private func end(on signal: Int32) {
    log.note("ending on signal \(signal)")
    end()
  }

  /// Asks every disk to drain; the loop stops when all have, or when the time limit has passed.
  func end() {
    guard !isEnding else { return }
    isEnding = true
    // Nothing is taken from other processes for a disk that will not be served.
    for patience in patiences { patience.giveUp() }
    manager.stopping()
    control?.giver.end()
    loop.after(limit) { [loop] in loop.stop() }
    // Count one more until all have been asked, so that a disk that closes at once is not mistaken for the last one.
    open += 1
    for disk in served { close(disk) {} }
    open -= 1
    if open == 0 { loop.stop() }
  }

  /// How long to wait for disks that do not drain.
  var limit: Duration { .seconds(command.drainTimeout) }

  /// Disks that are still to be closed.
  private var open = 0

  /// Drains a disk, which is no longer served from this moment on. Its socket's file is removed at once, so that another
  /// disk can be served there.
  ///
  /// - Parameter then: called once when every queue has stopped, if that ever happens.
  func close(_ disk: ServedDisk, then: @escaping () -> Void) {
    served.removeAll { $0 === disk }
    leaving.append(disk)
    open += 1
    // First, because a client that learns of the disk's end may look for the file.
    disk.socket.removeFile()
    disk.server.close { [self] in
      open -= 1
      // The kernel closes everything when the process ends, so at the end nothing waits for an image to be closed.
      if !isEnding { letGo(disk) }
      then()
      if isEnding, open == 0 { loop.stop() }
    }
    manager.note(state)
  }

  /// Forgets a disk that another process serves from now on.
  func forget(_ disk: ServedDisk) {
    served.removeAll { $0 === disk }
    letGo(disk)
    manager.note(state)
  }

  private func letGo(_ disk: ServedDisk) {
    leaving.removeAll { $0 === disk }
    let parcel = Parcel(disk.device)
    // After this turn of the loop, its handlers, which may retain the device as well, have returned.
    loop.after(.zero) { ErrandQueue().run { parcel.take()?.image.finish() } }
  }

  // MARK: Messages

  /// Reports that the disks are served.
  private func sayServed() {
    say(greeting)
    manager.ready(state)
    let unused = Activation.unused(besides: served.map(\.place))
    guard command.takeover.takeOver == nil, !unused.isEmpty else { return }
    log.warn(
      "no disk is served on these sockets, which were passed in LISTEN_FDS: " + unused.map(printable).joined(separator: ", "))
  }

  /// One line for a service manager.
  var state: String {
    guard served.count == 1, let disk = served.first else { return "serving \(served.count) disks" }
    return "serving \(disk.device.image.path) on \(disk.place)"
  }

  /// One line that says where the disks are served and, for a single disk, how a virtual machine attaches it.
  private var greeting: String {
    if let file = command.disks {
      let (disks, them) = served.count == 1 ? ("1 disk", "it") : ("\(served.count) disks", "them")
      return "Serving \(disks) as \(printable(file)) describes \(them)."
    }
    guard let disk = served.first else { preconditionFailure("without a list there is one disk") }
    let image = printable(disk.device.image.path)
    guard command.socketPath != nil else { return "Serving \(image) on \(disk.place)." }
    return """
      Serving \(image) on \(disk.place); for QEMU: -object memory-backend-memfd,id=mem,size=1G,share=on \
      -machine memory-backend=mem -m 1G -chardev socket,id=disk,path=\(disk.place),reconnect=1 \
      -device vhost-user-blk-pci,chardev=disk\(command.disk.numQueues.map { ",num-queues=\($0)" } ?? "")
      """
  }

  /// Unbuffered, even into a pipe or a file: the parent process may wait for this line.
  private func say(_ text: String) { People.output.write(printable(text)) }
}
