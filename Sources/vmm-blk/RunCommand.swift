/// `vmm-blk run`: the disk on a memory file, for as long as it is wanted or for one pass.
internal import ArgumentParser
internal import Glibc
internal import Logging
internal import MemoryFile
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Serve a disk to a driver that shares a memory file with it.",
    usage: """
      vmm-blk run --memory <file> --blk-file <path> [<options>]
      vmm-blk run --memory <file> --blk-file <path> --once [<options>]
      vmm-blk run --memory <file> --blk-file <path> --once --raw --queue <ring>
      """,
    discussion: """
      Without --once the disk is served until SIGTERM or Ctrl-C; everything taken is finished first. A driver finds the \
      disk's registers in the file (Docs/memory-file.md); `vmm-blk guest --memory FILE` is one.

      With --once everything that is available in the file's queues is processed, and what was done is printed. With --raw \
      the file is guest memory and nothing else, and --queue says where the rings are.
      """)

  @Option(help: .init("The memory file.", valueName: "file"))
  var memory: String

  @Option(help: .init("Make the memory file first, with this much guest memory.", valueName: "size"))
  var create: ByteCount?

  @Option(help: .init("Guest-physical address of the first byte of memory, for --create and --raw.", valueName: "address"))
  var memoryBase: ByteCount?

  @OptionGroup var disk: DeviceOptions

  @Option(
    help: .init(
      "After a signal to end, seconds to wait for what is in flight; a second signal does not wait at all.",
      valueName: "seconds"))
  var drainTimeout = 30

  @Flag(help: "Process what is available, say what was done, and exit.")
  var once = false

  @Flag(help: "The file is guest memory without header; needs --once and --queue.")
  var raw = false

  @Option(help: .init("A ring in a raw file, once for each queue.", valueName: "size=N,desc=A,avail=A,used=A"))
  var queue: [QueueSpecification] = []

  @Option(help: .init("What the driver is taken to have accepted, with --raw.", valueName: "bits"))
  var features: ByteCount?

  @Flag(help: "Print the account of --once as JSON.")
  var json = false

  func validate() throws {
    guard (0...86400).contains(drainTimeout) else {
      throw ValidationError("--drain-timeout \(drainTimeout) is not from 0 to 86400 seconds")
    }
    guard disk.onError == .report else {
      throw ValidationError("--on-error stop needs somebody to be told of it, and is for serve only: leave it out")
    }
    guard !json || once else { throw ValidationError("--json is for the account that --once prints: add --once") }
    guard !raw || once else { throw ValidationError("--raw is for one pass: add --once") }
    guard raw || queue.isEmpty else { throw ValidationError("--queue is for a file without header: add --raw") }
    guard raw || features == nil else { throw ValidationError("--features is for a file without header: add --raw") }
    guard !raw || !queue.isEmpty else {
      throw ValidationError("a raw file does not say where its rings are: add --queue size=N,desc=A,avail=A,used=A")
    }
    guard !once || create == nil else {
      throw ValidationError("a new file has nothing to process: leave out --create or --once")
    }
    guard memoryBase == nil || create != nil || raw else {
      throw ValidationError("the file says where its memory is: --memory-base is for --create and --raw")
    }
    guard (memoryBase?.bytes ?? 0) % 4096 == 0 else { throw ValidationError("--memory-base is not a multiple of 4096") }
    guard (create?.bytes ?? 4096) % 4096 == 0, create?.bytes != 0 else {
      throw ValidationError("--create \(create?.bytes ?? 0) is not a multiple of 4096 bytes")
    }
  }

  func run() throws {
    if once {
      try OnceRun(command: self).run()
    } else {
      try serve()
    }
  }

  private func serve() throws {
    Startup.ignoreStraySignals()
    // Before the device makes threads, which inherit that these signals are not theirs.
    let signals = try TerminationSignals()
    let log = ServeLog(level: .info)
    let device: BlockDevice
    let file: MemoryFile
    if let create {
      device = try disk.makeDevice()
      file = try MemoryFile.create(
        path: memory, memorySize: create.bytes, memoryBase: GuestAddress(memoryBase?.bytes ?? 0),
        maximumQueues: device.queueCount)
    } else {
      file = try MemoryFile.open(path: memory)
      device = try disk.makeDevice(queues: file.layout.maximumQueues)
    }
    var meter = Meter()
    let transport = try MemoryFileDevice(file: file, device: device) { line in
      guard case .pass(let heldBack) = meter.ask() else { return }
      if heldBack > 0 { log.warn("\(heldBack) lines were left out") }
      log.warn(line)
    }
    if let warning = device.engineWarning { log.warn(warning) }
    let queues = device.queueCount == 1 ? "1 queue" : "\(device.queueCount) queues"
    say(
      "Serving \(device.image.path) on \(memory) (\(queues), \(device.engineReason)); "
        + "for a driver: vmm-blk guest --memory \(memory) info")
    let loop = try EventLoop()
    var isEnding = false
    let end = {
      isEnding = true
      loop.after(.seconds(drainTimeout)) { loop.stop() }
      transport.close { loop.stop() }
    }
    let termination = try loop.add(signals.descriptor) { _ in
      guard let signal = signals.take() else { return }
      guard !isEnding else { return loop.stop() }
      log.note("ending on signal \(signal); what the driver has set up stays in \(memory)")
      end()
    }
    // The loop holds what its handlers hold, the device with its image for one.
    defer { loop.remove(termination) }
    do {
      try transport.open(in: loop)
      try loop.run()
    } catch {
      // Whatever was the matter, queues that run are stopped before the image is closed.
      end()
      try loop.run()
      throw error
    }
    let left = transport.abandon()
    guard !left.isEmpty else { return }
    log.warn(
      "left behind, because the medium does not answer: \(memory) (\(device.image.path)): \(ServerEvent.list(left))")
    People.flush()
    // Whoever let go of the image now would wait for the same medium.
    _exit(ExitStatus.leftBehind.rawValue)
  }

  /// At once, also into a pipe or a file: whoever started us may wait for this line.
  private func say(_ text: String) { People.output.write(printable(text)) }
}

/// `size=8,desc=0x0,avail=0x400,used=0x800`, in any order.
struct QueueSpecification: ExpressibleByArgument, Equatable {
  let configuration: QueueConfiguration

  init?(argument: String) {
    var values: [String: UInt64] = [:]
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1)
      guard sides.count == 2, let value = ByteCount(argument: String(sides[1])) else { return nil }
      guard values.updateValue(value.bytes, forKey: String(sides[0])) == nil else { return nil }
    }
    guard
      values.count == 4, let size = values["size"], let size = UInt16(exactly: size), let table = values["desc"],
      let available = values["avail"], let used = values["used"]
    else { return nil }
    configuration = QueueConfiguration(
      size: size, descriptorTable: GuestAddress(table), availableRing: GuestAddress(available),
      usedRing: GuestAddress(used))
  }
}
