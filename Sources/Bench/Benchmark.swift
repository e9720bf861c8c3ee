/// A benchmark from the first connection to the result: the one entry point for the command line.
internal import GuestDriver
internal import Histogram
internal import VirtioCore

/// What to run, on what, how often.
public struct BenchmarkOptions: Sendable {
  public var target: TargetChoice
  public var targetOptions = TargetOptions()
  public var workload = Workload()
  public var run = RunOptions()
  public var repeats = 1
  /// Seconds to measure the client's own ceiling before each run; 0 to skip it.
  public var ceilingSeconds = 0.3
  /// The CPU for the echo: where the back-end would run.
  public var backendProcessor: Int?
  /// Count the back-end's system calls with perf, which slows them down.
  public var countsSystemCalls = false
  /// Look for the largest depth, up to the workload's, that meets this target.
  public var latencyTarget: LatencyTarget?
  /// Recorded with the result.
  public var conditions: Conditions?

  public init(target: TargetChoice) { self.target = target }
}

/// A bound on latency (fio's `latency_target`).
public struct LatencyTarget: Sendable {
  public var nanoseconds: UInt64
  /// The share of requests that have to meet it, in percent.
  public var percentile: Double

  public init(nanoseconds: UInt64, percentile: Double) {
    self.nanoseconds = nanoseconds
    self.percentile = percentile
  }
}

public enum Benchmark {
  /// Runs it.
  ///
  /// - Parameter progress: called twice a second, with the number of the repeat, from 0 on.
  public static func run(
    _ options: BenchmarkOptions, progress: (Int, RunProgress) -> Void = { _, _ in }
  ) throws(BenchError) -> BenchmarkResult {
    guard let target = options.latencyTarget else { return try runOnce(options, progress: progress) }
    return try largestDepth(options, within: target, progress)
  }

  /// Halves the range of depths until one is left; latency grows with depth, or there is nothing to find.
  private static func largestDepth(
    _ options: BenchmarkOptions, within target: LatencyTarget, _ progress: (Int, RunProgress) -> Void
  ) throws(BenchError) -> BenchmarkResult {
    func run(_ depth: Int) throws(BenchError) -> (result: BenchmarkResult, latency: UInt64) {
      var one = options
      one.workload.depth = depth
      let result = try runOnce(one, progress: progress)
      let latencies = result.measurements.map { Double($0.latencies.valueAtPercentile(target.percentile)) }
      return (result, UInt64(Statistics.median(latencies)))
    }
    var best = try run(1)
    guard best.latency <= target.nanoseconds else {
      throw .unavailable(
        "already at depth 1, the latency is \(Format.microseconds(best.latency)) us at percentile "
          + "\(Format.significantTail(target.percentile)), above the target of \(Format.microseconds(target.nanoseconds)) us")
    }
    var (good, bad) = (1, options.workload.depth + 1)
    while bad - good > 1 {
      let depth = bad == options.workload.depth + 1 && good == 1 ? options.workload.depth : (good + bad) / 2
      let found = try run(depth)
      if found.latency <= target.nanoseconds { (best, good) = (found, depth) } else { bad = depth }
    }
    return best.result
  }

  private static func runOnce(
    _ options: BenchmarkOptions, progress: (Int, RunProgress) -> Void
  ) throws(BenchError) -> BenchmarkResult {
    var result = BenchmarkResult(options)
    if options.workload.pattern.reads, let warning = options.conditions?.holesWarning { result.warn(warning) }
    for number in 0..<max(options.repeats, 1) {
      if case .echo = options.target {
        let features = BlockFeature.understood.subtracting(options.targetOptions.avoided)
        result.targetName = "echo"
        result.measurements.append(
          try Echo.measure(
            options.workload, ringSize: options.targetOptions.ringSize, features: features, options: options.run,
            cpu: options.backendProcessor, ramp: options.run.rampTime, seconds: options.run.runtime
          ) { progress(number, $0) })
      } else {
        try measure(options, number, &result, progress)
      }
    }
    return result
  }

  private static func measure(
    _ options: BenchmarkOptions, _ number: Int, _ result: inout BenchmarkResult, _ progress: (Int, RunProgress) -> Void
  ) throws(BenchError) {
    let target = try Target.open(options.target, workload: options.workload, options: options.targetOptions)
    let features = target.session.features
    // Before the queues run: an idle back-end leaves its CPU to the echo.
    var ceiling: Double? = nil
    if options.ceilingSeconds > 0, !options.run.sleeps {
      ceiling = try Echo.ceiling(
        options.workload, ringSize: options.targetOptions.ringSize, features: features, options: options.run,
        cpu: options.backendProcessor, seconds: options.ceilingSeconds)
    }
    try target.start()
    result.targetName = target.name
    if target.meter.process == nil, !target.meter.includesClient {
      result.warn(
        "the back-end's process is unknown, so its cost and its CPUs are unknown: name it with --backend-pid")
    }
    let counter = options.countsSystemCalls ? target.meter.process.flatMap { SystemCallCounter(process: $0) } : nil
    if options.countsSystemCalls, counter == nil, target.meter.process != nil {
      result.warn("system calls cannot be counted: install perf and allow it (sysctl kernel.perf_event_paranoid=-1)")
    }
    var measurement = try Client.run(
      target.session.queues, features: features, capacity: target.capacity, workload: options.workload,
      options: options.run, meter: target.meter
    ) { progress(number, $0) }
    if let counter { measurement.backendCallsPerSecond = counter.stop() }
    measurement.ceiling = ceiling
    // While the queues' threads still exist.
    if let process = target.meter.process, let cpus = ProcessFiles.busiestThreadProcessors(of: process) {
      let ours = Set(options.run.processors)
      if !cpus.isDisjoint(with: ours) {
        let list = ours.sorted().map(String.init).joined(separator: ", ")
        result.warn(
          "the back-end (process \(process)) may run on the client's CPU \(list): start it on another, for example with "
            + "'taskset -c 0'")
      }
    }
    try target.shutDown()
    if measurement.isDisturbed {
      result.warn(
        "disturbed: the client's ceiling (\(Format.count(measurement.ceiling ?? 0)) requests/s) is below the result, so "
          + "something else ran while it was measured; measure again on a quiet machine")
    } else if measurement.isNearCeiling {
      result.warn(
        "the client is part of what was measured: against an echo it reaches \(Format.count(measurement.ceiling ?? 0)) "
          + "requests/s, hardly more than the result")
    }
    result.measurements.append(measurement)
  }
}

/// The result of a benchmark.
public struct BenchmarkResult: Sendable {
  let options: BenchmarkOptions
  var targetName = ""
  /// One for each repeat.
  var measurements: [Measurement] = []
  /// What the user should know, each once.
  public private(set) var warnings: [String] = []

  init(_ options: BenchmarkOptions) { self.options = options }

  mutating func warn(_ text: String) { if !warnings.contains(text) { warnings.append(text) } }

  /// Requests a second: the median of the repeats.
  public var iops: Double { Statistics.median(measurements.map(\.iops)) }
  /// Requests that were measured, in all repeats.
  public var requests: UInt64 { measurements.reduce(0) { $0 + $1.requests } }
  /// Blocks whose contents were checked.
  public var verified: UInt64 { measurements.reduce(0) { $0 + $1.verified } }
}
