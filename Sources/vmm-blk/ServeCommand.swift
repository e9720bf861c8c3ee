/// `vmm-blk serve`: disks for VMMs on vhost-user sockets.
public import ArgumentParser
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
      vmm-blk serve --print-capabilities
      """,
    discussion: """
      The virtual machine's memory has to be shared (memory-backend-memfd,share=on in QEMU, memory shared=on in Cloud \
      Hypervisor). One front-end is served at a time; when it goes, the next can come. SIGTERM and SIGINT finish what is \
      in flight, remove the socket and end with status 0. What a medium does not answer within --drain-timeout is left \
      behind, with a line that says what that is, and status 75; a second signal does not wait at all. (Such a process \
      stays in the process table until the kernel gets its answer from the medium.)

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
      return
    }
    guard disk.blkFile != nil else { throw ValidationError("No disk: name one with --blk-file, or many with --disks.") }
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
    let served = try list.map { try openAll($0, openFiles, log) } ?? [openOne()]
    log.noteEngines(of: served.map(\.device))
    let loop = try EventLoop()
    let servers = served.map { disk in
      let news = disks == nil ? log : log.about(disk.place)
      return BackendServer(
        device: disk.device, on: disk.socket, in: loop, memoryBudget: memoryBudget.bytes,
        publishesInOrder: publishInOrder == .on
      ) { news.event($0) }
    }
    // The loop holds what its handlers hold, so the files do not go by themselves.
    defer { for disk in served { disk.socket.removeFile() } }
    let end = ServeEnd(servers, in: loop, limit: .seconds(drainTimeout))
    if disks == nil { servers.first?.finished = { loop.stop() } }
    _ = try loop.add(signals.descriptor) { _ in
      guard let signal = signals.take() else { return }
      log.note("ending on signal \(signal)" + (end.hasBegun ? " at once" : ""))
      end.hasBegun ? loop.stop() : end.begin()
    }
    _ = try loop.add(resumption.descriptor) { _ in
      guard resumption.take() != nil else { return }
      log.note("queues that stall go on")
      for disk in served { disk.device.resume() }
    }
    do {
      for server in servers { try server.open() }
      say(disks.map { "Serving \(served.count) disks as \($0) describes them." } ?? greeting(served[0]))
      try loop.run()
    } catch {
      // Whatever was the matter, queues that run are stopped before the images are closed.
      end.begin()
      try loop.run()
      throw error
    }
    let left = zip(served, servers).compactMap { (disk, server) -> String? in
      let queues = server.abandon()
      return queues.isEmpty ? nil : "\(disk.place) (\(disk.device.image.path)): \(ServerEvent.list(queues))"
    }
    guard !left.isEmpty else { return }
    log.warn("left behind, because the medium does not answer: " + left.joined(separator: "; "))
    for disk in served { disk.socket.removeFile() }
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
  }

  private func openOne() throws -> Served {
    let device = try disk.makeDevice(queues: Self.queues)
    if let fd { return Served(device: device, socket: try ServerSocket.adopt(fd), place: "descriptor \(fd)") }
    guard let socketPath else { preconditionFailure("validation asks for a path or a descriptor") }
    return Served(device: device, socket: .listening(try Listener(path: socketPath)), place: socketPath)
  }

  /// All or none: what was opened before a disk that cannot be is closed again, and its sockets go with it.
  private func openAll(_ list: ServeDiskList, _ openFiles: Int, _ log: ServeLog) throws -> [Served] {
    try ServeFileLimit.check(list.disks.map(\.options), limit: openFiles, log)
    return try list.disks.enumerated().map { index, disk in
      do {
        let device = try disk.options.makeDevice(queues: Self.queues)
        let listener = try Listener(path: disk.socketPath)
        return Served(device: device, socket: .listening(listener), place: disk.socketPath)
      } catch {
        throw list.error(index, "\(error)", ExitStatus(error))
      }
    }
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
