/// `vmm-blk run`: serves a disk on a memory file, until it is ended or for one pass.
internal import ArgumentParser
internal import OperatorWords
internal import VirtioBlkDevice
internal import VirtioCore
internal import VirtioRegisters

struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Serve a disk to a driver that shares a memory file with it.",
    usage: """
      vmm-blk run --memory <file> --blk-file <path> [<options>]
      vmm-blk run --take-over <path> --blk-file <path> [<options>]
      vmm-blk run --memory <file> --blk-file <path> --once [<options>]
      vmm-blk run --memory <file> --blk-file <path> --once --raw --queue <ring>
      """,
    discussion: """
      Without --once the disk is served until SIGTERM or Ctrl-C; requests in flight are completed first. A driver finds the \
      disk's registers in the file (Docs/memory-file.md); `vmm-blk guest --memory FILE` is such a driver.

      With --control a running process can be replaced by a new one, of a newer version or with another engine, while the driver \
      runs. 'vmm-blk run --take-over' with the path of that control socket receives the memory file with the device's role, and \
      the image's lock, and continues; the old process exits with status 0. If anything goes wrong on the way, the old process \
      continues.

      With --once the available requests of all queues are processed, and the results are printed. With --raw the file is plain \
      guest memory, --queue gives the positions of the rings, and --features what the driver accepted (by default only VERSION_1).
      """)

  @Option(
    help: .init("The memory file; can be left out with --take-over.", valueName: "file"))
  var memory: String?

  @Option(help: .init("Create the memory file first, with this much guest memory.", valueName: "size"))
  var create: ByteCount?

  @Option(help: .init("Guest-physical address of the first byte of memory, for --create and --raw.", valueName: "address"))
  var memoryBase: ByteCount?

  @Option(
    help: .init(
      """
      With --create, the registers in the file: mmio (the default), mmio-legacy, pci, pci-legacy or pci-transitional.
      """, valueName: "name"))
  var registers: RegisterName?

  @OptionGroup var disk: DeviceOptions

  @OptionGroup var takeover: TakeoverOptions

  @OptionGroup var figures: MetricsOptions

  @OptionGroup var tracing: TraceFileOptions

  @OptionGroup var protection: SandboxOptions

  @OptionGroup var driverCheck: DriverCheckOptions

  @OptionGroup var logging: LogOptions

  @Option(
    help: .init(
      "How many seconds to wait for requests in flight after a signal to end; a second signal ends the process at once.",
      valueName: "seconds"))
  var drainTimeout = 30

  @Flag(help: "Process the available requests, print the results, and exit.")
  var once = false

  @Flag(help: "The file is plain guest memory without a header; needs --once and --queue.")
  var raw = false

  @Option(help: .init("The ring of a queue in a raw file; once per queue.", valueName: "size=N,desc=A,avail=A,used=A"))
  var queue: [QueueSpecification] = []

  @Flag(help: "Print the results of --once as JSON.")
  var json = false

  func validate() throws {
    guard memory != nil || takeover.takeOver != nil else { throw Self.noMemory }
    guard !once || (takeover.control == nil && takeover.takeOver == nil) else {
      throw ValidationError("--once ends before anybody could take over: leave out --once, or --control and --take-over")
    }
    guard !once || figures.metrics == nil else {
      throw ValidationError("--once ends before anybody could read metrics: leave out --once or --metrics")
    }
    guard !once || tracing.traceFile == nil else {
      throw ValidationError("--once ends before a signal could start a trace: leave out --once or --trace-file")
    }
    guard takeover.takeOver == nil || create == nil else {
      throw ValidationError("--take-over continues with the memory file of the old process: leave out --create")
    }
    guard takeover.takeOver == nil || disk.record == nil else { throw TakeoverOptions.noRecord }
    guard takeover.takeOver == nil || !driverCheck.isOn else { throw DriverCheckOptions.noTakeover }
    guard (0...86400).contains(drainTimeout) else {
      throw ValidationError("--drain-timeout \(drainTimeout) is not from 0 to 86400 seconds")
    }
    guard disk.onError == .report else {
      throw ValidationError("--on-error stop is for serve only: leave it out")
    }
    guard !json || once else { throw ValidationError("--json is for the results of --once: add --once") }
    guard !raw || once else { throw ValidationError("--raw needs --once: add it") }
    guard raw || queue.isEmpty else { throw ValidationError("--queue is for a file without a header: add --raw") }
    guard !raw || disk.noFeature.isEmpty else {
      throw ValidationError("with --raw, --features says what the driver accepted: leave out --no-feature")
    }
    guard !raw || !queue.isEmpty else {
      throw ValidationError("a raw file does not say where its rings are: add --queue size=N,desc=A,avail=A,used=A")
    }
    guard !once || create == nil else {
      throw ValidationError("a new file has no requests to process: leave out --create or --once")
    }
    guard registers == nil || create != nil else {
      throw ValidationError("an existing file already has registers: --registers is for --create")
    }
    guard memoryBase == nil || create != nil || raw else {
      throw ValidationError("an existing file already has a memory base: --memory-base is for --create and --raw")
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
      try RunService(self).run()
    }
  }

  /// The memory file, unless it comes from the process that is taken over.
  func memoryPath() throws -> String {
    guard let memory else { throw Self.noMemory }
    return memory
  }

  private static let noMemory = ValidationError("there is no memory file: name one with --memory")
}

/// The registers of a new memory file, by name.
struct RegisterName: ExpressibleByArgument {
  let interface: RegisterInterface

  init?(argument: String) {
    guard let interface = RegisterInterface(name: argument) else { return nil }
    self.interface = interface
  }

  static var allValueStrings: [String] { RegisterInterface.allCases.map(\.name) }
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
