/// The options of a workload, spelled as fio spells them.
public import ArgumentParser
public import Bench
internal import CLinux
internal import Glibc
internal import OperatorWords

extension AccessPattern: ExpressibleByArgument {
  public init?(argument: String) {
    // fio has two names for it.
    self.init(rawValue: argument == "readwrite" ? "rw" : argument)
  }
}

extension Verification: ExpressibleByArgument {}

/// A time as fio writes it: `5`, `0.5`, `500ms`, `2s`, `1m`.
struct FioTime: ExpressibleByArgument, Equatable {
  let seconds: Double

  init(_ seconds: Double) { self.seconds = seconds }

  init?(argument: String) {
    for (unit, factor) in [("ms", 0.001), ("us", 0.000_001), ("s", 1), ("m", 60), ("h", 3600), ("", 1)]
    where argument.hasSuffix(unit) {
      guard let number = Double(argument.dropLast(unit.count)), number.isFinite, number >= 0 else { return nil }
      seconds = number * factor
      return
    }
    return nil
  }

  var defaultValueDescription: String { "\(seconds)" }
}

/// The workload to run on the disk.
struct WorkloadOptions: ParsableArguments {
  @Option(
    name: [.customLong("rw"), .customLong("readwrite")],
    help: .init("read, write, randread, randwrite, rw or randrw.", valueName: "pattern"))
  var pattern = AccessPattern.randread

  @Option(
    name: [.customLong("bs"), .customLong("blocksize")], help: .init("Bytes of a request: 512 to 4m.", valueName: "size"))
  var blockSize = ByteCount(4096)

  @Option(name: .customLong("iodepth"), help: .init("Requests in flight on each queue.", valueName: "n"))
  var depth = 1

  @Option(name: .customLong("numjobs"), help: .init("Queues, each with its own requests.", valueName: "n"))
  var jobs = 1

  @Option(help: .init("Seconds to measure.", valueName: "time"))
  var runtime = FioTime(5)

  @Option(
    name: [.customLong("ramp_time"), .customLong("ramp-time")],
    help: .init("Seconds to run before measuring.", valueName: "time"))
  var rampTime = FioTime(0.5)

  @Option(help: .init("Use only this many bytes at the beginning of the disk.", valueName: "size"))
  var size: ByteCount?

  @Option(help: .init("Percentage of reads in mixed workloads.", valueName: "percent"))
  var rwmixread = 50

  @Option(help: "Verify what is read, by a checksum in each block or by comparing all of it.")
  var verify: Verification?

  @Option(
    name: [.customLong("randseed"), .customLong("seed")],
    help: .init("Seed of the random offsets and contents.", valueName: "number"))
  var seed: UInt64 = Workload().seed

  @Flag(name: [.customLong("time_based"), .customLong("time-based")], help: .hidden)
  var isTimeBased = false

  func validate() throws {
    guard blockSize.bytes >= 512, blockSize.bytes <= 4 << 20, blockSize.bytes % 512 == 0 else {
      throw ValidationError("--bs \(blockSize.bytes) is not a multiple of 512 from 512 to 4m")
    }
    guard (1...10_000).contains(depth) else { throw ValidationError("--iodepth \(depth) is not from 1 to 10000") }
    guard (1...256).contains(jobs) else { throw ValidationError("--numjobs \(jobs) is not from 1 to 256") }
    guard runtime.seconds > 0, runtime.seconds <= 86400 * 30 else {
      throw ValidationError("--runtime \(runtime.seconds) is not above 0 and up to 30 days")
    }
    guard rampTime.seconds <= 86400 else { throw ValidationError("--ramp_time \(rampTime.seconds) is more than a day") }
    guard (0...100).contains(rwmixread) else { throw ValidationError("--rwmixread \(rwmixread) is not from 0 to 100") }
  }

  var workload: Workload {
    var workload = Workload()
    workload.pattern = pattern
    workload.blockSize = Int(blockSize.bytes)
    workload.depth = depth
    workload.jobs = jobs
    workload.size = size?.bytes
    workload.readPercentage = rwmixread
    workload.verification = verify
    workload.seed = seed
    return workload
  }
}

/// The CPUs of this machine, and how client and back-end share them by default.
enum Processors {
  static var count: Int { max(Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))), 1) }
  /// The last CPU, for the client; empty on a machine with one CPU.
  static var client: [Int] { count > 1 ? [count - 1] : [] }
  /// The first CPU, for the back-end; empty on a machine with one CPU.
  static var backend: [Int] { count > 1 ? [0] : [] }
}
