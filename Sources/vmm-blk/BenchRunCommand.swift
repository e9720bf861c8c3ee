/// `vmm-blk bench [run]`: one workload on one target.
internal import ArgumentParser
internal import Bench
internal import CLinux
internal import Glibc
internal import GuestDriver
internal import OperatorWords
internal import VirtioBlkDevice

struct BenchRunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Measure one workload.",
    usage: """
      vmm-blk bench --socket-path <path> [<options>]
      vmm-blk bench --memory <path> [<options>]
      vmm-blk bench --blk-file <path> [--paths] [<options>]
      vmm-blk bench --ceiling [<options>]
      """)

  enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    case normal
    case json
    case jsonPlus = "json+"
  }

  @Option(help: .init("Measure the vhost-user back-end that listens on this socket.", valueName: "path"))
  var socketPath: String?

  @Option(help: .init("Measure the device on this memory file.", valueName: "path"))
  var memory: String?

  @Flag(help: "Measure the client alone, against an echo of the ring.")
  var ceiling = false

  @Flag(help: "Compare all ways to serve this image, alternating between them, and recommend one.")
  var paths = false

  @OptionGroup(title: "The comparison of --paths")
  var laboratory: LaboratoryOptions

  @OptionGroup(title: "Workload")
  var workload: WorkloadOptions

  @Option(help: .init("Repeat the measurement this often, each time on a new connection.", valueName: "n"))
  var repeats = 1

  @Option(
    name: [.customLong("latency_target"), .customLong("latency-target")],
    help: .init("Find the largest depth up to --iodepth that meets this latency, for example 200us.", valueName: "time"))
  var latencyTarget: FioTime?

  @Option(
    name: [.customLong("latency_percentile"), .customLong("latency-percentile")],
    help: .init("The share of requests that has to meet it.", valueName: "percent"))
  var latencyPercentile = 99.0

  @Option(name: [.customLong("output-format"), .customLong("output_format")], help: "normal, json or json+.")
  var outputFormat = OutputFormat.normal

  @Option(help: .init("Write the result to this file.", valueName: "path"))
  var output: String?

  @Option(
    name: .customLong("client-cpus"),
    help: .init("Run the client on these CPUs; 'none' does not pin it.", valueName: "list"))
  var clientCPUs: ClientProcessors?

  @Flag(help: "A client thread for each queue instead of one for all.")
  var threadPerQueue = false

  @Flag(help: "Let the client sleep until it is called, for clients that share a CPU with the back-end.")
  var clientSleeps = false

  @Flag(inversion: .prefixedNo, help: "Measure the client's maximum before each run.")
  var ceilingCheck = true

  @Option(help: .init("Entries of each ring: a power of two.", valueName: "n"))
  var queueSize: Int?

  @Option(help: .init("The format of the rings: split or packed.", valueName: "format"))
  var ring = RingFormat.split

  @Option(help: .init("Number of regions of guest memory: 1 to 509.", valueName: "n"))
  var memoryRegions = 1

  @Flag(inversion: .prefixedNo, help: "Use indirect descriptors if the device offers them.")
  var indirect = true

  @Flag(inversion: .prefixedNo, help: "Use event indices if the device offers them.")
  var eventIdx = true

  @Flag(help: "Keep the back-end's in-flight records, as virtual machine monitors do; with --socket-path.")
  var inflight = false

  @Flag(
    help: "Have the back-end log the pages that it writes, as during a live migration; with --socket-path.")
  var log = false

  @Option(help: .init("Count the CPU time of this process instead of the one on the socket.", valueName: "pid"))
  var backendPid: Int32?

  @Flag(help: "Count the back-end's system calls with perf, at some cost to it.")
  var countSyscalls = false

  @OptionGroup(title: "A device in this process")
  var device: DeviceOptions

  func validate() throws {
    let targets = [socketPath != nil, memory != nil, ceiling, device.namesImage].count { $0 }
    if paths {
      guard device.imagePath != nil, targets == 1 else {
        throw ValidationError("--paths compares devices in this process: name an image with --blk-file and nothing else")
      }
      guard !workload.pattern.isMixed, workload.verify == nil else {
        throw ValidationError("--paths takes read, write, randread or randwrite, without --verify")
      }
    } else if laboratory.isUsed {
      throw ValidationError("--rounds, --slice, --depths and --groups belong to --paths")
    }
    guard targets == 1 else {
      throw ValidationError("name one thing to measure: --socket-path, --memory, --blk-file or --ceiling")
    }
    if !device.namesImage, let option = device.given.first {
      throw ValidationError("\(option) is for a device in this process: name its image with --blk-file, or leave it out")
    }
    if inflight, socketPath == nil {
      throw ValidationError("--inflight is for a back-end on a socket: name it with --socket-path")
    }
    if log, socketPath == nil {
      throw ValidationError("--log is for a back-end on a socket: name it with --socket-path")
    }
    guard (1...1000).contains(repeats) else { throw ValidationError("--repeats \(repeats) is not from 1 to 1000") }
    guard (1...509).contains(memoryRegions) else {
      throw ValidationError("--memory-regions \(memoryRegions) is not from 1 to 509")
    }
    if let latencyTarget, latencyTarget.seconds <= 0 || latencyTarget.seconds > 100 {
      throw ValidationError("--latency_target is not above 0 and up to 100 s")
    }
    guard latencyPercentile > 0, latencyPercentile <= 100 else {
      throw ValidationError("--latency_percentile \(latencyPercentile) is not above 0 and up to 100")
    }
    if let queueSize, !(1...32768).contains(queueSize) || queueSize & (queueSize - 1) != 0 {
      throw ValidationError("--queue-size \(queueSize) is not a power of two up to 32768")
    }
  }

  func run() throws {
    if paths { return try runLaboratory() }
    let target = try target()
    var options = BenchmarkOptions(target: target)
    options.conditions = conditions(of: target)
    options.workload = workload.workload
    options.targetOptions.ringSize = queueSize
    options.targetOptions.ring = ring
    options.targetOptions.memoryRegions = memoryRegions
    options.targetOptions.usesIndirect = indirect
    options.targetOptions.usesEventIndex = eventIdx
    options.targetOptions.keepsRecords = inflight
    options.targetOptions.logsWrites = log
    options.targetOptions.backendProcess = backendPid
    options.run.runtime = workload.runtime.seconds
    options.run.rampTime = workload.rampTime.seconds
    options.run.processors = clientCPUs?.processors ?? (clientSleeps ? [] : Processors.client)
    options.run.hasThreadPerQueue = threadPerQueue
    options.run.sleeps = clientSleeps
    options.repeats = repeats
    options.ceilingSeconds = ceilingCheck && !ceiling ? 0.3 : 0
    options.backendProcessor = (device.pinCPUs?.processors ?? Processors.backend).first
    options.countsSystemCalls = countSyscalls
    options.latencyTarget = latencyTarget.map {
      LatencyTarget(nanoseconds: UInt64($0.seconds * 1e9), percentile: latencyPercentile)
    }

    let meter = BenchProgress(repeats: repeats)
    let result = try Benchmark.run(options) { meter.show($0, $1) }
    meter.clear()
    let text: String
    switch outputFormat {
    case .normal: text = output == nil ? OutputWidth.folded(result.table(width: OutputWidth.characters)) : result.table()
    case .json: text = result.json(plus: false)
    case .jsonPlus: text = result.json(plus: true)
    }
    try BenchOutput.write(text, to: output)
    // A user who asked for a file sees the table as well.
    if output != nil, outputFormat != .normal {
      print(OutputWidth.folded(result.table(width: OutputWidth.characters)), terminator: "")
    }
    for warning in result.warnings { BenchOutput.complain("warning: \(warning)") }
  }

  /// The conditions to record with the result. The options of a back-end behind a socket are unknown.
  private func conditions(of target: TargetChoice) -> Conditions {
    var conditions = Conditions()
    switch target {
    case .device(let blockDevice, _):
      var options = BlockDeviceOptions()
      device.tuning.apply(to: &options)
      conditions = Conditions(blockDevice, setup: options.uring, waiting: options.waiting)
    case .socket(let path), .memoryFile(let path): conditions.image = path
    case .echo: break
    }
    return conditions
  }

  private func target() throws -> TargetChoice {
    if let socketPath { return .socket(path: socketPath) }
    if let memory { return .memoryFile(path: memory) }
    if ceiling { return .echo }
    var device = device
    if device.pinCPUs == nil, !clientSleeps {
      // The first CPU, where the machine has another for the client.
      device.pinCPUs = Processors.backend.first.flatMap { ProcessorList(argument: "\($0)") }
    }
    return .device(try device.makeDevice(on: .vhostUser, queues: workload.jobs), name: device.imageWords ?? "")
  }
}

/// `--client-cpus`: a list, or `none`.
struct ClientProcessors: ExpressibleByArgument {
  let processors: [Int]

  init?(argument: String) {
    if argument == "none" {
      processors = []
    } else {
      guard let list = ProcessorList(argument: argument) else { return nil }
      processors = list.processors
    }
  }
}
