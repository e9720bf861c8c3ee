/// `vmm-blk serve`: a disk for a VMM on a vhost-user socket.
public import ArgumentParser
public import Logging
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice

struct ServeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Serve a disk image to a virtual machine over a vhost-user socket.",
    discussion: """
      The virtual machine's memory has to be shared (memory-backend-memfd,share=on in QEMU, memory shared=on in Cloud \
      Hypervisor). One front-end is served at a time; when it goes, the next can come. SIGTERM and SIGINT finish what is \
      in flight, remove the socket and end with status 0.
      """)

  @OptionGroup var disk: DeviceOptions

  @Option(help: .init("Listen on this path.", valueName: "path"))
  var socketPath: String?

  @Option(
    help: .init("Use this open descriptor, a listening or a connected UNIX socket, instead of a path.", valueName: "n"))
  var fd: Int32?

  @Flag(help: "Print what this back-end can do, as JSON for management software, and exit.")
  var printCapabilities = false

  @Option(help: "The least important lines to log, to standard error: trace, debug, info, notice, warning, error, critical.")
  var logLevel = Logger.Level.info

  func validate() throws {
    guard !printCapabilities else { return }
    guard disk.blkFile != nil else { throw ValidationError("No disk: name one with --blk-file.") }
    guard (socketPath == nil) != (fd == nil) else {
      throw ValidationError("Say where to serve, with either --socket-path or --fd.")
    }
  }

  func run() throws {
    if printCapabilities { return try say(Self.capabilities) }
    // Before the device makes threads, which inherit that these signals are not theirs.
    let signals = try TerminationSignals()
    let log = ServeLog(level: logLevel)
    let device = try disk.makeDevice()
    let socket = try self.socket()
    if let warning = device.engineWarning { log.warn(warning) }
    log.note("engine: \(device.engineReason)")
    let loop = try EventLoop()
    let server = BackendServer(device: device, on: socket, in: loop) { log.event($0) }
    server.finished = { loop.stop() }
    _ = try loop.add(signals.descriptor) { _ in
      guard let signal = signals.take() else { return }
      log.note("ending on signal \(signal)")
      loop.stop()
    }
    try server.open()
    try say(greeting(device))
    defer { server.close() }
    try loop.run()
  }

  private func socket() throws -> ServerSocket {
    if let fd { return try ServerSocket.adopt(fd) }
    guard let socketPath else { preconditionFailure("validation asks for a path or a descriptor") }
    return .listening(try Listener(path: socketPath))
  }

  /// One line that says where the disk is and how a virtual machine gets at it.
  private func greeting(_ device: BlockDevice) -> String {
    let image = device.image.path
    guard let socketPath else { return "Serving \(image) on descriptor \(fd ?? -1)." }
    return """
      Serving \(image) on \(socketPath); for QEMU: -object memory-backend-memfd,id=mem,size=1G,share=on \
      -machine memory-backend=mem -m 1G -chardev socket,id=disk,path=\(socketPath) \
      -device vhost-user-blk-pci,chardev=disk,num-queues=\(device.queueCount)
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
  private func say(_ text: String) throws { try FileDescriptor.standardOutput.writeAll((text + "\n").utf8) }
}

extension Logger.Level: @retroactive ExpressibleByArgument {}
