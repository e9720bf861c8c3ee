/// `vmm-blk serve`: disks for VMMs on vhost-user sockets.
public import ArgumentParser
internal import Control
internal import Glibc
public import Logging
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

struct ServeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Serve a disk image to a virtual machine over a vhost-user socket.",
    usage: """
      vmm-blk serve --blk-file <path> --socket-path <path> [<options>]
      vmm-blk serve --blk-file <path> --fd <n> [<options>]
      vmm-blk serve --disks <file> [<options>]
      vmm-blk serve --take-over <path> --blk-file <path> [<options>]
      vmm-blk serve --print-capabilities
      """,
    discussion: """
      The virtual machine's memory has to be shared (memory-backend-memfd,share=on in QEMU, memory shared=on in Cloud \
      Hypervisor). One front-end is served at a time; when it goes, the next can come. SIGTERM and SIGINT finish what is \
      in flight, remove the socket and end with status 0. What a medium does not answer within --drain-timeout is left \
      behind, with a line that says what that is, and status 75; a second signal does not wait at all. (Such a process \
      stays in the process table until the kernel gets its answer from the medium.)

      With --control a running server can be replaced by a new one, of a newer version or with other options, while its guests \
      run: 'vmm-blk serve --take-over' with the path of that control socket gets the listening sockets, the connections, the \
      guests' memory, the positions of the queues and the images' locks, and goes on; the server before ends with status 0. \
      Whatever goes wrong on the way, the server before goes on.

      With --disks one process serves many disks. FILE is a JSON array with an object for each, in the words of these \
      options:

        [ { "blk-file": "a.img", "socket-path": "a.sock", "num-queues": 2 },
          { "blk-file": "b.img", "socket-path": "b.sock", "read-only": true } ]

      Numbers, and true or false, stand without quotes. The words are blk-file and socket-path, which every disk needs, and \
      format, read-only, num-queues, logical-block-size, queue-size-max, serial, engine, direct, threads, pin-cpus, waiting, \
      poll-us, notify, uring, on-error, inject (a rule or an array of them) and no-lock; what an entry does not say is as the command line says. Either all disks are served or none.
      """)

  @OptionGroup var disk: DeviceOptions

  @Option(help: .init("Serve all the disks that this JSON file describes, each on a socket of its own.", valueName: "file"))
  var disks: String?

  @Option(help: .init("Listen on this path.", valueName: "path"))
  var socketPath: String?

  @Option(
    help: .init("Use this open descriptor, a listening or a connected UNIX socket, instead of a path.", valueName: "n"))
  var fd: Int32?

  @OptionGroup var takeover: TakeoverOptions

  @Option(
    help: .init(
      "After a signal to end, seconds to wait for what is in flight; a medium that hangs would otherwise keep the process.",
      valueName: "seconds"))
  var drainTimeout = 30

  @Option(help: .init("Guest memory that one front-end may have mapped, for each disk.", valueName: "size"))
  var memoryBudget = ByteCount(BackendServer.defaultMemoryBudget)

  @Option(
    help: .init(
      "Where a front-end keeps no in-flight records: answer requests in the order in which they came, so that after a crash the "
        + "ring alone says which are done.", valueName: "on|off"))
  var publishInOrder = OnOff.on

  @Flag(help: "Print what this back-end can do, as JSON for management software, and exit.")
  var printCapabilities = false

  @Option(help: "The least important lines to log, to standard error: trace, debug, info, notice, warning, error, critical.")
  var logLevel = Logger.Level.info

  func validate() throws {
    guard !printCapabilities else { return }
    guard (0...86400).contains(drainTimeout) else {
      throw ValidationError("--drain-timeout \(drainTimeout) is not from 0 to 86400 seconds.")
    }
    guard memoryBudget.bytes > 0 else { throw ValidationError("--memory-budget 0 leaves no guest any memory.") }
    if disks != nil {
      guard disk.blkFile == nil, disk.serial == nil, disk.record == nil, socketPath == nil, fd == nil else {
        throw ValidationError(
          "With --disks, the image, the serial and the socket of each disk are said in its entry, and --record is for one disk."
        )
      }
      guard takeover.takeOver == nil || !disk.given.contains("--record") else { throw TakeoverOptions.noRecord }
      return
    }
    guard disk.blkFile != nil else { throw ValidationError("No disk: name one with --blk-file, or many with --disks.") }
    if takeover.takeOver != nil {
      guard fd == nil else {
        throw ValidationError("With --take-over the socket comes from the server before: leave --fd out.")
      }
      guard disk.record == nil else { throw TakeoverOptions.noRecord }
      return
    }
    guard (socketPath == nil) != (fd == nil) else {
      throw ValidationError("Say where to serve, with either --socket-path or --fd.")
    }
  }

  func run() throws {
    if printCapabilities { return print(Self.capabilities) }
    Startup.ignoreStraySignals()
    // Before the devices make threads, which inherit that these signals are not theirs.
    let signals = try TerminationSignals()
    let resumption = try TerminationSignals([SIGUSR1])
    let log = ServeLog(level: logLevel)
    let openFiles = ServeFileLimit.raise()
    let list = try disks.map { try ServeDiskList(file: $0, defaults: disk) }
    ServeFileLimit.makeRoom(for: list?.disks.map(\.options) ?? [disk], limit: openFiles, signals.descriptor)
    let loop = try EventLoop()
    let service = Service(log: log, isOne: disks == nil)
    let makeServer = { (device: BlockDevice, socket: ServerSocket, place: String) in
      let news = service.isOne ? log : log.about(place)
      return BackendServer(
        device: device, on: socket, in: loop, memoryBudget: memoryBudget.bytes, publishesInOrder: publishInOrder == .on
      ) { news.event($0) }
    }
    let taker = try takeover.taker(on: .vhostUser, in: loop, log: log)
    if let taker {
      service.disks = try prepare(taker, list, makeServer)
    } else {
      service.disks = try list.map { try openAll($0, openFiles, log, makeServer) } ?? [openOne(makeServer)]
    }
    let served = service.disks
    log.noteEngines(of: served.map(\.device))
    // The loop holds what its handlers hold, so the files do not go by themselves.
    defer { service.removeFiles() }
    let controlListener = try takeover.listen()
    let end = ServeEnd(served.map(\.server), in: loop, limit: .seconds(drainTimeout))
    if disks == nil { served.first?.server.finished = { loop.stop() } }
    _ = try loop.add(signals.descriptor) { _ in
      guard let signal = signals.take() else { return }
      log.note("ending on signal \(signal)" + (end.hasBegun ? " at once" : ""))
      service.control?.giver.end()
      end.hasBegun ? loop.stop() : end.begin()
    }
    _ = try loop.add(resumption.descriptor) { _ in
      guard resumption.take() != nil else { return }
      log.note("queues that stall go on")
      for disk in served { disk.device.resume() }
    }
    do {
      if let taker {
        taker.takeAll {
          let listener = controlListener ?? self.takeover.adopt(from: taker, log)
          do { if let listener { service.control = try self.openControl(listener, service, loop, log) } } catch {
            log.warn("the control socket is not served: \(error)")
          }
          guard taker.hasAny else { return loop.stop() }
          self.say(self.disks.map { "Serving \(served.count) disks as \($0) describes them." } ?? self.greeting(served[0]))
        }
      } else {
        for disk in served { try disk.server.open() }
        if let controlListener { service.control = try openControl(controlListener, service, loop, log) }
        say(disks.map { "Serving \(served.count) disks as \($0) describes them." } ?? greeting(served[0]))
      }
      try loop.run()
    } catch {
      // Whatever was the matter, queues that run are stopped before the images are closed.
      end.begin()
      try loop.run()
      throw error
    }
    if let taker, !taker.hasAny, let failure = taker.failures.first { throw failure }
    let left = served.compactMap { disk -> String? in
      let queues = disk.server.abandon()
      return queues.isEmpty ? nil : "\(disk.place) (\(disk.device.image.path)): \(ServerEvent.list(queues))"
    }
    guard !left.isEmpty else { return }
    log.warn("left behind, because the medium does not answer: " + left.joined(separator: "; "))
    service.removeFiles()
    People.flush()
    // Whoever let go of the images now would wait for the same medium.
    _exit(ExitStatus.leftBehind.rawValue)
  }

  // MARK: Disks

  /// Queues of a disk for which nobody says how many: as many as front-ends ask for by default, which is one for each virtual
  /// processor, because a front-end that asks for more than there are fails. A queue that nobody starts costs nothing.
  static let queues = 16

  /// A disk that is ready for front-ends.
  private struct Served {
    var device: BlockDevice
    var socket: ServerSocket
    /// Where it is served, in words.
    var place: String
    var server: BackendServer
    /// The same for another process: an absolute path.
    var name: String {
      if case .listening(let listener) = socket, listener.path != nil { Takeover.absolute(place) } else { place }
    }
  }

  /// What a running server consists of.
  private final class Service {
    let log: ServeLog
    let isOne: Bool
    var disks: [Served] = []
    var control: TakeoverControl?

    init(log: ServeLog, isOne: Bool) {
      self.log = log
      self.isOne = isOne
    }

    func removeFiles() {
      for disk in disks { disk.socket.removeFile() }
      control?.server.listener.removeFile()
    }
  }

  private typealias ServerMaker = (BlockDevice, ServerSocket, _ place: String) -> BackendServer

  private func openOne(_ makeServer: ServerMaker) throws -> Served {
    let device = try disk.makeDevice(queues: Self.queues)
    let (socket, place): (ServerSocket, String)
    if let fd {
      (socket, place) = (try ServerSocket.adopt(fd), "descriptor \(fd)")
    } else {
      guard let socketPath else { preconditionFailure("validation asks for a path or a descriptor") }
      (socket, place) = (.listening(try Listener(path: socketPath)), socketPath)
    }
    return Served(device: device, socket: socket, place: place, server: makeServer(device, socket, place))
  }

  /// All or none: what was opened before a disk that cannot be is closed again, and its sockets go with it.
  private func openAll(
    _ list: ServeDiskList, _ openFiles: Int, _ log: ServeLog, _ makeServer: ServerMaker
  ) throws -> [Served] {
    try ServeFileLimit.check(list.disks.map(\.options), limit: openFiles, log)
    return try list.disks.enumerated().map { index, disk in
      do {
        let device = try disk.options.makeDevice(queues: Self.queues)
        let socket = ServerSocket.listening(try Listener(path: disk.socketPath))
        return Served(
          device: device, socket: socket, place: disk.socketPath, server: makeServer(device, socket, disk.socketPath))
      } catch {
        throw list.error(index, "\(error)", ExitStatus(error))
      }
    }
  }

  // MARK: Control

  private func openControl(
    _ listener: Listener, _ service: Service, _ loop: EventLoop, _ log: ServeLog
  ) throws -> TakeoverControl {
    let disks = service.disks.map { ServeGivenDisk(device: $0.device, server: $0.server, name: $0.name) }
    return try TakeoverControl(on: listener, for: disks, .vhostUser, in: loop, log: log)
  }

  /// Makes every disk ready that the server before serves. It has to be the same disks.
  private func prepare(_ taker: TakeoverTaker, _ list: ServeDiskList?, _ makeServer: ServerMaker) throws -> [Served] {
    let names = try taker.greet()
    guard let list else {
      guard let name = names.first, names.count == 1 else {
        throw TakeoverFailure.otherDisks("The running server serves \(names.count) disks: describe them with --disks.")
      }
      if let socketPath, Takeover.absolute(socketPath) != name {
        throw TakeoverFailure.otherDisks("The running server serves its disk on \(printable(name)), not on \(socketPath).")
      }
      let place = socketPath ?? name
      return [try prepare(taker, name, disk, place: place, socketPath: name.hasPrefix("/") ? place : nil, makeServer)]
    }
    let wanted = list.disks.map { Takeover.absolute($0.socketPath) }
    if let missing = names.first(where: { !wanted.contains($0) }) {
      throw TakeoverFailure.otherDisks(
        "The running server serves a disk on \(printable(missing)), which \(list.file) does not list.")
    }
    return try list.disks.enumerated().map { index, disk in
      guard names.contains(wanted[index]) else {
        throw list.error(index, "the running server does not serve it: list the disks that are served, and no others")
      }
      let path = disk.socketPath
      do { return try prepare(taker, wanted[index], disk.options, place: path, socketPath: path, makeServer) } catch {
        throw list.error(index, "\(error)", ExitStatus(error))
      }
    }
  }

  /// - Parameter socketPath: where its socket is, so that its file can be removed one day; `nil`: that is not ours to do.
  private func prepare(
    _ taker: TakeoverTaker, _ name: String, _ disk: DeviceOptions, place: String, socketPath: String?, _ makeServer: ServerMaker
  ) throws -> Served {
    var served: Served?
    try taker.prepare(name) { state, list, errands in
      let device = try disk.makeDevice(
        queues: Self.queues, lock: try state.image.lock.map { try list.descriptor($0) }, serial: state.image.serial)
      let socket = try ServeTakenDisk.socket(state, list, path: socketPath)
      let server = makeServer(device, socket, place)
      served = Served(device: device, socket: socket, place: place, server: server)
      return ServeTakenDisk(name: name, place: place, device: device, server: server, errands: errands)
    }
    guard let served else { preconditionFailure("a disk that was prepared was made") }
    return served
  }

  // MARK: Words

  /// One line that says where the disk is and how a virtual machine gets at it.
  private func greeting(_ served: Served) -> String {
    let image = printable(served.device.image.path)
    guard socketPath != nil else { return "Serving \(image) on \(served.place)." }
    return """
      Serving \(image) on \(served.place); for QEMU: -object memory-backend-memfd,id=mem,size=1G,share=on \
      -machine memory-backend=mem -m 1G -chardev socket,id=disk,path=\(served.place) \
      -device vhost-user-blk-pci,chardev=disk\(disk.numQueues.map { ",num-queues=\($0)" } ?? "")
      """
  }

  /// "Backend program conventions" of the vhost-user specification.
  private static let capabilities = """
    {
      "type": "block",
      "features": ["read-only", "blk-file"]
    }
    """

  /// At once, also into a pipe or a file: whoever started us may wait for this line.
  private func say(_ text: String) { People.output.write(printable(text)) }
}

enum OnOff: String, ExpressibleByArgument, CaseIterable {
  case on
  case off
}

// swift-format-ignore: AvoidRetroactiveConformances
extension Logger.Level: @retroactive ExpressibleByArgument {}
