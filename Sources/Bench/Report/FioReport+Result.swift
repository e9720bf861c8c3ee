/// From a result to fio's structure.
internal import FoundationEssentials
internal import Histogram

extension BenchmarkResult {
  /// The result as fio would write it.
  ///
  /// - Parameter plus: with fio's `json+` bins of all latencies.
  public func json(plus: Bool) -> String {
    let now = Date()
    let style = Date.ISO8601FormatStyle(timeZone: .gmt)
    let report = FioReport(
      version: "fio-3.33 (vmm-blk bench)", timestamp: Int(now.timeIntervalSince1970),
      timestampMilliseconds: Int(now.timeIntervalSince1970 * 1000), time: now.formatted(style),
      globalOptions: jobOptions, jobs: measurements.enumerated().map { FioJob($1, self, plus: plus, number: $0) })
    return Self.encode(report)
  }

  static func encode(_ value: some Encodable) -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    // Counts and times never give numbers that are not finite.
    encoder.nonConformingFloatEncodingStrategy = .convertToString(positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    guard let data = try? encoder.encode(value) else { preconditionFailure("plain values always encode") }
    return String(decoding: data, as: UTF8.self) + "\n"
  }

  /// The options by fio's names, with values as text.
  var jobOptions: [String: String] {
    let workload = options.workload
    var words = [
      "rw": workload.pattern.rawValue, "bs": "\(workload.blockSize)", "iodepth": "\(workload.depth)",
      "numjobs": "\(workload.jobs)", "runtime": Format.significant(options.run.runtime),
      "ramp_time": Format.significant(options.run.rampTime), "ioengine": "vmm-blk",
    ]
    words["size"] = workload.size.map { "\($0)" }
    words["verify"] = workload.verification?.rawValue
    if workload.pattern.isMixed { words["rwmixread"] = "\(workload.readPercentage)" }
    return words
  }
}

extension FioJob {
  init(_ measurement: Measurement, _ result: BenchmarkResult, plus: Bool, number: Int) {
    let workload = measurement.workload
    let percent = measurement.seconds > 0 ? 100 / (measurement.seconds * 1e9) : 0
    let latencies = measurement.latencies
    jobname = workload.pattern.rawValue
    elapsed = Int((measurement.seconds + result.options.run.rampTime).rounded(.up))
    options = result.jobOptions
    read = FioDirection(measurement.reads, measurement, plus: plus)
    write = FioDirection(measurement.writes, measurement, plus: plus)
    trim = FioDirection()
    runtime = Int(measurement.seconds * 1000)
    userCPU = Double(measurement.client.user) * percent
    systemCPU = Double(measurement.client.system) * percent
    switches = measurement.client.switches
    let levels = [1, 2, 4, 8, 16, 32]
    depthLevel = Self.depths(levels, workload.depth)
    // Requests are submitted as answers come back: the client does not choose the size of a batch.
    depthSubmit = Self.depths([0, 4, 8, 16, 32], nil)
    depthComplete = Self.depths([0, 4, 8, 16, 32], nil)
    let buckets = LatencyBuckets(latencies)
    latencyNanoseconds = buckets.nanoseconds
    latencyMicroseconds = buckets.microseconds
    latencyMilliseconds = buckets.milliseconds
    latencyDepth = workload.depth
    if let target = result.options.latencyTarget {
      latencyTarget = Int(clamping: target.nanoseconds / 1000)
      latencyPercentile = target.percentile
    }
    extra = BenchExtra(
      target: result.targetName, iops: measurement.iops, backendMicroseconds: measurement.backendMicroseconds,
      clientMicroseconds: measurement.clientMicroseconds,
      backendSwitches: measurement.perRequest(measurement.backend.switches),
      systemCalls: measurement.systemCallsPerRequest, kicks: measurement.perRequest(measurement.kicks) ?? 0,
      calls: measurement.perRequest(measurement.calls) ?? 0, ceiling: measurement.ceiling,
      nearCeiling: measurement.isNearCeiling, disturbed: measurement.isDisturbed, verified: measurement.verified,
      latency: Dictionary(
        uniqueKeysWithValues: Percentile.forPeople.map { ($0.name, latencies.valueAtPercentile($0.value)) }),
      warnings: result.warnings, conditions: result.options.conditions)
  }

  /// The share of the time at each depth, as fio names the depths; a closed loop is always at one.
  private static func depths(_ levels: [Int], _ depth: Int?) -> [String: Double] {
    let isSubmission = levels[0] == 0
    var shares = Dictionary(uniqueKeysWithValues: levels.map { ("\($0)", 0.0) })
    if isSubmission { shares["64"] = 0 }
    shares[">=64"] = 0
    guard let depth else { return shares }
    let level = levels.last { $0 <= depth } ?? 1
    shares[depth >= 64 ? ">=64" : "\(level)"] = 100
    return shares
  }
}

extension FioDirection {
  init(_ latencies: Histogram<UInt64>, _ measurement: Measurement, plus: Bool) {
    self.init()
    guard latencies.totalCount > 0 else { return }
    let share = Double(latencies.totalCount) / Double(measurement.requests)
    let blockSize = measurement.workload.blockSize
    total = latencies.totalCount
    bytes = total * UInt64(blockSize)
    kibibytes = bytes / 1024
    iops = measurement.iops * share
    bandwidthBytes = UInt64(iops * Double(blockSize))
    bandwidthKibibytes = bandwidthBytes / 1024
    runtime = Int(measurement.seconds * 1000)
    completion = FioLatency(latencies, plus: plus)
    latency = FioLatency(latencies, plus: false)
    latency.percentile = nil
    rate = FioSamples(measurement.samples.map { $0 * share })
    bandwidth = FioSamples(measurement.samples.map { $0 * share * Double(blockSize) / 1024 })
  }
}

extension FioLatency {
  init(_ latencies: Histogram<UInt64>, plus: Bool) {
    min = latencies.min
    max = latencies.max
    mean = latencies.mean
    stddev = latencies.stdDeviation
    count = latencies.totalCount
    percentile = Dictionary(
      uniqueKeysWithValues: Percentile.ofFio.map { ($0.fioName, latencies.valueAtPercentile($0.value)) })
    if plus {
      bins = Dictionary(
        latencies.recordedValues().map { ("\($0.value)", UInt64($0.count)) }, uniquingKeysWith: +)
    }
  }
}

/// A percentile and its names.
struct Percentile {
  var value: Double
  var name: String { value == value.rounded() ? Format.fixed(value, 0) : Format.significantTail(value) }
  var fioName: String { Format.fixed(value, 6) }

  /// fio's default list.
  static let ofFio: [Percentile] = [
    1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99,
  ].map(Percentile.init)

  static let forPeople: [Percentile] = [50, 90, 99, 99.9, 100].map(Percentile.init)
}

/// fio's three lists of the share of requests in each range of latency.
struct LatencyBuckets {
  private static let steps: [UInt64] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000]
  private(set) var nanoseconds: [String: Double] = [:]
  private(set) var microseconds: [String: Double] = [:]
  private(set) var milliseconds: [String: Double] = [:]

  /// Each recorded value belongs to the first list entry above it, and only to that one. Asking the histogram for counts of
  /// ranges would count a value twice if its bin crosses a limit.
  init(_ latencies: Histogram<UInt64>) {
    let limits =
      Self.steps + Self.steps.map { $0 * 1000 } + Self.steps.map { $0 * 1_000_000 } + [2_000_000_000, UInt64.max]
    var shares = [Double](repeating: 0, count: limits.count)
    let total = Double(max(latencies.totalCount, 1))
    for recorded in latencies.recordedValues() {
      guard let place = limits.firstIndex(where: { recorded.value < $0 }) else { continue }
      shares[place] += Double(recorded.count) / total * 100
    }
    let count = Self.steps.count
    for (index, step) in Self.steps.enumerated() {
      nanoseconds["\(step)"] = shares[index]
      microseconds["\(step)"] = shares[count + index]
      milliseconds["\(step)"] = shares[2 * count + index]
    }
    milliseconds["2000"] = shares[3 * count]
    milliseconds[">=2000"] = shares[3 * count + 1]
  }
}
