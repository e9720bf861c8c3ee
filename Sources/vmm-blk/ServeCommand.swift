/// `vmm-blk serve`: disks for VMMs on vhost-user sockets.
internal import ArgumentParser
internal import Control
internal import Glibc
internal import Logging
internal import OperatorWords
internal import Sandbox
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
      vmm-blk serve --image <uri> --socket-path <path> [<options>]
      vmm-blk serve --disks <file> [<options>]
      vmm-blk serve --take-over <path> --blk-file <path> [<options>]
      vmm-blk serve --print-capabilities
      """,
    discussion: """
      The virtual machine's memory must be shared (memory-backend-memfd,share=on in QEMU, memory shared=on in Cloud \
      Hypervisor). One front-end is served at a time; when it disconnects, another can connect. On SIGTERM or SIGINT the server \
      completes what is in flight, removes the socket and exits with status 0. Requests that a medium has not answered within \
      --drain-timeout are abandoned: a message names them, and the status is 75. A second signal ends the server at once. (After \
      that the process remains in the process table until the kernel gets an answer from the medium.)

      With --control a running server can be replaced by a new one, of a newer version or with other options, while its guests \
      run. 'vmm-blk serve --take-over' with the path of that control socket receives the listening sockets, the connections, the \
      guests' memory, the positions of the queues and the images' locks, and continues; the old server exits with status 0. If \
      anything goes wrong on the way, the old server continues.

      A service manager that opens the sockets (LISTEN_FDS) makes --socket-path unnecessary; with --socket-path or --disks, a \
      disk is served on the socket that was passed for its path. With NOTIFY_SOCKET and WATCHDOG_USEC the server notifies the \
      manager when the disks are served, and that it is still running.

      With --disks one process serves many disks. FILE is a JSON array with an object for each disk, whose members are named like \
      these options:

        [ { "blk-file": "a.img", "socket-path": "a.sock", "num-queues": 2 },
          { "blk-file": "b.img", "socket-path": "b.sock", "read-only": true } ]

      Numbers, true and false are written without quotes. Every disk needs blk-file (or image) and socket-path. The other members \
      are format, read-only, num-queues, logical-block-size, queue-size-max, serial, engine, direct, threads, pin-cpus, waiting, \
      poll-us, notify, uring, on-error, inject (a rule or an array of rules), latencies, limit, features, no-feature, config, \
      zoned, no-lock, break-lock, reconnect-timeout and server-keeps-writes; their defaults are the options on the command line. \
      Either all disks are served or none.
      """)

  @OptionGroup var disk: DeviceOptions

  @Option(help: .init("Serve all disks that this JSON file describes, each on its own socket.", valueName: "file"))
  var disks: String?

  @Option(help: .init("Listen on this path.", valueName: "path"))
  var socketPath: String?

  @Option(
    help: .init("Use this open descriptor, a listening or a connected UNIX socket, instead of a path.", valueName: "n"))
  var fd: Int32?

  @Option(
    help: .init(
      "Permissions of the disks' sockets, in octal: who may write may connect. (default: according to the umask)",
      valueName: "mode"))
  var socketMode: SocketMode?

  @Option(
    help: .init(
      "Group of the disks' sockets, by name or number. Its members may connect, unless --socket-mode forbids it.",
      valueName: "group"))
  var socketGroup: SocketGroup?

  @OptionGroup var takeover: TakeoverOptions

  @Option(
    help: .init(
      "How many seconds to wait for requests in flight after a signal to end, so that a hanging medium does not keep the process.",
      valueName: "seconds"))
  var drainTimeout = 30

  @Option(help: .init("How much guest memory one front-end may have mapped, per disk.", valueName: "size"))
  var memoryBudget = ByteCount(BackendServer.defaultMemoryBudget)

  @Option(
    help: .init(
      "If a front-end keeps no in-flight records: answer requests in order, so that after a crash the ring alone shows which ones are "
        + "done.", valueName: "on|off"))
  var publishInOrder = OnOff.on

  @Flag(help: "Print the capabilities of this back-end, as JSON for management software, and exit.")
  var printCapabilities = false

  @OptionGroup var figures: MetricsOptions

  @OptionGroup var tracing: TraceFileOptions

  @OptionGroup var protection: SandboxOptions

  @Option(
    help: .init(
      "Allow disks that are added later to have their images and sockets below this path, in addition to the folders of the present "
        + "ones. May be repeated.", valueName: "path"))
  var allowPath: [String] = []

  @Flag(
    name: .customLong("allow-nbd"),
    help: .init(
      "Allow disks that are added later to be exports of NBD servers, even if none of the first disks is one."))
  var allowNBD = false

  @Flag(
    name: .customLong("allow-rbd"),
    help: .init(
      "Allow disks that are added later to be images of Ceph clusters, even if none of the first disks is one."))
  var allowRBD = false

  @OptionGroup var driverCheck: DriverCheckOptions

  @OptionGroup var logging: LogOptions

  func validate() throws {
    guard !printCapabilities else { return }
    guard (0...86400).contains(drainTimeout) else {
      throw ValidationError("--drain-timeout \(drainTimeout) is not from 0 to 86400 seconds.")
    }
    guard takeover.takeOver == nil || !driverCheck.isOn else { throw DriverCheckOptions.noTakeover }
    guard memoryBudget.bytes > 0 else { throw ValidationError("--memory-budget 0 leaves no guest any memory.") }
    if let missing = allowPath.first(where: { !AllowedPlace.exists($0) }) {
      throw ValidationError("--allow-path \(printable(missing)) does not exist: create it first, or leave it out.")
    }
    guard allowPath.isEmpty || disks != nil || takeover.control != nil else {
      throw ValidationError("--allow-path is for disks that are added later: add --control or --disks, or leave it out.")
    }
    guard !allowNBD || disks != nil || takeover.control != nil else {
      throw ValidationError("--allow-nbd is for disks that are added later: add --control or --disks, or leave it out.")
    }
    guard !allowRBD || disks != nil || takeover.control != nil else {
      throw ValidationError("--allow-rbd is for disks that are added later: add --control or --disks, or leave it out.")
    }
    if disks != nil {
      guard !disk.namesImage, disk.serial == nil, disk.record == nil, socketPath == nil, fd == nil else {
        throw ValidationError(
          "With --disks, the image, the serial and the socket of each disk are given in its entry, and --record is for one disk."
        )
      }
      guard takeover.takeOver == nil || !disk.given.contains("--record") else { throw TakeoverOptions.noRecord }
      return
    }
    guard disk.namesImage else { throw ValidationError("No disk: name one with --blk-file or --image, or many with --disks.") }
    if takeover.takeOver != nil {
      guard fd == nil else {
        throw ValidationError("With --take-over the socket comes from the old server: leave --fd out.")
      }
      guard disk.record == nil else { throw TakeoverOptions.noRecord }
      return
    }
    guard socketPath == nil || fd == nil else {
      throw ValidationError("--socket-path and --fd both name the socket: give one of them.")
    }
    guard socketPath != nil || fd != nil || Activation.count > 0 else {
      throw ValidationError("No socket: name one with either --socket-path or --fd.")
    }
  }

  func run() throws {
    if printCapabilities { return print(Self.capabilities) }
    try ServeService(self).run()
  }

  /// "Backend program conventions" of the vhost-user specification.
  private static let capabilities = """
    {
      "type": "block",
      "features": ["read-only", "blk-file"]
    }
    """
}

/// Permission bits in octal, as for chmod.
struct SocketMode: ExpressibleByArgument, Equatable {
  let bits: UInt32

  init?(argument: String) {
    guard let bits = UInt32(argument, radix: 8), bits <= 0o777, argument.utf8.allSatisfy({ (48...55).contains($0) }) else {
      return nil
    }
    self.bits = bits
  }
}

/// A group that exists on this system.
struct SocketGroup: ExpressibleByArgument, Equatable {
  let number: UInt32

  init?(argument: String) {
    guard let number = SocketAccess.group(argument) else { return nil }
    self.number = number
  }
}

extension ServeCommand {
  /// Who may connect to the sockets that this process creates.
  var socketAccess: SocketAccess { SocketAccess(mode: socketMode?.bits, group: socketGroup?.number) }
}
