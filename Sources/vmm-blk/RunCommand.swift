/// `vmm-blk run`: the disk on a memory file, for as long as it is wanted or for one pass.
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
      Without --once the disk is served until SIGTERM or Ctrl-C; everything taken is finished first. A driver finds the \
      disk's registers in the file (Docs/memory-file.md); `vmm-blk guest --memory FILE` is one.

      With --control a running process can be replaced by a new one, of a newer version or with another engine, while the \
      driver works: 'vmm-blk run --take-over' with the path of that control socket gets the memory file with the device's \
      role, and the image's lock, and goes on; the process before ends with status 0. Whatever goes wrong on the way, the \
      process before goes on.

      With --once everything that is available in the file's queues is processed, and what was done is printed. With --raw \
      the file is guest memory and nothing else, and --queue says where the rings are, and --features what the driver accepted (VERSION_1 alone if not given).
      """)

  @Option(
    help: .init("The memory file; with --take-over it is the one that is served, and can be left out.", valueName: "file"))
  var memory: String?

  @Option(help: .init("Make the memory file first, with this much guest memory.", valueName: "size"))
  var create: ByteCount?

  @Option(help: .init("Guest-physical address of the first byte of memory, for --create and --raw.", valueName: "address"))
  var memoryBase: ByteCount?

  @Option(
    help: .init(
      """
      With --create, the registers that a driver finds in the file: mmio, mmio-legacy, pci, pci-legacy or pci-transitional. \
      Left out: mmio.
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
      "After a signal to end, seconds to wait for what is in flight; a second signal does not wait at all.",
      valueName: "seconds"))
  var drainTimeout = 30

  @Flag(help: "Process what is available, say what was done, and exit.")
  var once = false

  @Flag(help: "The file is guest memory without header; needs --once and --queue.")
  var raw = false

  @Option(help: .init("A ring in a raw file, once for each queue.", valueName: "size=N,desc=A,avail=A,used=A"))
  var queue: [QueueSpecification] = []

  @Flag(help: "Print the account of --once as JSON.")
  var json = false

  func validate() throws {
    guard memory != nil || takeover.takeOver != nil else { throw Self.noMemory }
    guard !once || (takeover.control == nil && takeover.takeOver == nil) else {
      throw ValidationError("one pass has nobody to hand over to: leave out --once, or --control and --take-over")
    }
    guard !once || figures.metrics == nil else {
      throw ValidationError("one pass is over before anybody asks: leave out --once or --metrics")
    }
    guard !once || tracing.traceFile == nil else {
      throw ValidationError("one pass is over before a signal can start a trace: leave out --once or --trace-file")
    }
    guard takeover.takeOver == nil || create == nil else {
      throw ValidationError("--take-over goes on with the memory file that is served: leave out --create")
    }
    guard takeover.takeOver == nil || disk.record == nil else { throw TakeoverOptions.noRecord }
    guard takeover.takeOver == nil || !driverCheck.isOn else { throw DriverCheckOptions.noTakeover }
    guard (0...86400).contains(drainTimeout) else {
      throw ValidationError("--drain-timeout \(drainTimeout) is not from 0 to 86400 seconds")
    }
    guard disk.onError == .report else {
      throw ValidationError("--on-error stop needs somebody to be told of it, and is for serve only: leave it out")
    }
    guard !json || once else { throw ValidationError("--json is for the account that --once prints: add --once") }
    guard !raw || once else { throw ValidationError("--raw is for one pass: add --once") }
    guard raw || queue.isEmpty else { throw ValidationError("--queue is for a file without header: add --raw") }
    guard !raw || disk.noFeature.isEmpty else {
      throw ValidationError("with --raw, --features says what the driver accepted: leave out --no-feature")
    }
    guard !raw || !queue.isEmpty else {
      throw ValidationError("a raw file does not say where its rings are: add --queue size=N,desc=A,avail=A,used=A")
    }
    guard !once || create == nil else {
      throw ValidationError("a new file has nothing to process: leave out --create or --once")
    }
    guard registers == nil || create != nil else {
      throw ValidationError("the file says what registers it has: --registers is for --create")
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
      try RunService(self).run()
    }
  }

  /// The memory file, where it does not come from a process before.
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
