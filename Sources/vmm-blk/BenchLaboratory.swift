/// `vmm-blk bench --paths`: the laboratory of completion paths.
internal import ArgumentParser
internal import Bench
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VirtioBlkDevice

/// A list of depths: `1,4,32`.
struct DepthList: ExpressibleByArgument {
  let depths: [Int]

  init?(argument: String) {
    depths = argument.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) ?? 0 }
    guard !depths.isEmpty, depths.allSatisfy({ (1...1024).contains($0) }) else { return nil }
  }
}

/// A list of groups of rows: `bare,engine`.
struct GroupList: ExpressibleByArgument {
  let groups: Set<PathGroup>

  init?(argument: String) {
    let named = argument.split(separator: ",", omittingEmptySubsequences: false).map { PathGroup(rawValue: String($0)) }
    guard !named.isEmpty, named.allSatisfy({ $0 != nil }) else { return nil }
    groups = Set(named.compactMap { $0 })
  }
}

struct LaboratoryOptions: ParsableArguments {
  @Option(help: .init("How often each row is measured. (default: 3)", valueName: "n"))
  var rounds: Int?

  @Option(help: .init("Seconds of each measurement. (default: 0.3)", valueName: "time"))
  var slice: FioTime?

  @Option(help: .init("Depths of the curves. (default: 1,2,4,8,16,32,64,128,256)", valueName: "list"))
  var depths: DepthList?

  @Option(help: .init("Rows to measure: bare, engine, uring, waiting, notification.", valueName: "list"))
  var groups: GroupList?

  var isUsed: Bool { rounds != nil || slice != nil || depths != nil || groups != nil }

  func validate() throws {
    if let rounds, !(1...1000).contains(rounds) { throw ValidationError("--rounds \(rounds) is not from 1 to 1000") }
    if let slice, !(0.01...3600).contains(slice.seconds) {
      throw ValidationError("--slice \(slice.seconds) is not from 0.01 to 3600 seconds")
    }
  }
}

extension BenchRunCommand {
  /// Runs all rows, shows the table, and writes `paths.json` and `paths.csv` into the directory of `--output`.
  func runLaboratory() throws {
    guard let path = device.imagePath else { throw ValidationError("name an image with --blk-file") }
    let image = try ImageFile(device.imageOptions(path, direct: device.direct))
    var options = PathOptions(image: image)
    options.workload = workload.workload
    options.rounds = laboratory.rounds ?? options.rounds
    options.slice = laboratory.slice?.seconds ?? options.slice
    if let depths = laboratory.depths?.depths {
      options.depths = depths
      options.mainDepth = depths.contains(options.mainDepth) ? options.mainDepth : depths[depths.count - 1]
      options.pointDepths = [depths[0], options.mainDepth]
    }
    options.only = laboratory.groups?.groups ?? []
    options.backendCPU = (device.pinCPUs?.processors ?? Processors.backend).first
    options.clientCPUs = clientCPUs?.processors ?? Processors.client
    let meter = BenchProgress(repeats: 1)
    let report = try PathLaboratory.run(options) { done, total, what in meter.note("\(done) of \(total): \(what)") }
    meter.clear()
    if outputFormat == .normal {
      print(OutputWidth.folded(report.table(width: OutputWidth.characters)), terminator: "")
    } else {
      print(report.json(), terminator: "")
    }
    guard let output else { return }
    guard unsafe mkdir(output, 0o755) == 0 || errno == EEXIST else {
      throw ValidationError("\(output) cannot be created: \(Errno(rawValue: errno))")
    }
    try BenchOutput.write(report.json(), to: output + "/paths.json")
    try BenchOutput.write(report.csv(), to: output + "/paths.csv")
  }
}
