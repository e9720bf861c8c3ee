/// A result in the structure of fio 3's JSON, so that tools that read fio's output can read this; what fio has no field for is
/// in the object `vmm-blk` of each job.
internal import FoundationEssentials
internal import Histogram

/// The whole file.
struct FioReport: Codable {
  var version: String
  var timestamp: Int
  var timestampMilliseconds: Int
  var time: String
  var globalOptions: [String: String]
  /// One for each repeat.
  var jobs: [FioJob]

  enum CodingKeys: String, CodingKey {
    case version = "fio version"
    case timestamp
    case timestampMilliseconds = "timestamp_ms"
    case time
    case globalOptions = "global options"
    case jobs
  }
}

struct FioJob: Codable {
  var jobname: String
  var groupid = 0
  var error = 0
  var eta = 0
  var elapsed: Int
  var options: [String: String]
  var read: FioDirection
  var write: FioDirection
  var trim: FioDirection
  var sync = FioSync()
  /// Milliseconds.
  var runtime: Int
  /// CPU time of the client, in percent of one CPU.
  var userCPU: Double
  var systemCPU: Double
  /// Context switches of the client.
  var switches: UInt64
  var majorFaults = 0
  var minorFaults = 0
  var depthLevel: [String: Double]
  var depthSubmit: [String: Double]
  var depthComplete: [String: Double]
  var latencyNanoseconds: [String: Double]
  var latencyMicroseconds: [String: Double]
  var latencyMilliseconds: [String: Double]
  var latencyDepth: Int
  var latencyTarget = 0
  var latencyPercentile = 100.0
  var latencyWindow = 0
  var extra: BenchExtra

  enum CodingKeys: String, CodingKey {
    case jobname, groupid, error, eta, elapsed, read, write, trim, sync
    case options = "job options"
    case runtime = "job_runtime"
    case userCPU = "usr_cpu"
    case systemCPU = "sys_cpu"
    case switches = "ctx"
    case majorFaults = "majf"
    case minorFaults = "minf"
    case depthLevel = "iodepth_level"
    case depthSubmit = "iodepth_submit"
    case depthComplete = "iodepth_complete"
    case latencyNanoseconds = "latency_ns"
    case latencyMicroseconds = "latency_us"
    case latencyMilliseconds = "latency_ms"
    case latencyDepth = "latency_depth"
    case latencyTarget = "latency_target"
    case latencyPercentile = "latency_percentile"
    case latencyWindow = "latency_window"
    case extra = "vmm-blk"
  }
}

/// Reads, writes or trims of a job.
struct FioDirection: Codable {
  var bytes: UInt64 = 0
  var kibibytes: UInt64 = 0
  /// Per second.
  var bandwidthBytes: UInt64 = 0
  var bandwidthKibibytes: UInt64 = 0
  var iops = 0.0
  /// Milliseconds.
  var runtime = 0
  var total: UInt64 = 0
  var short = 0
  var dropped = 0
  /// From the decision to issue a request to its submission; a ring in memory has no such time.
  var submission = FioLatency()
  /// From submission to completion, and the same again as the total latency.
  var completion = FioLatency()
  var latency = FioLatency()
  var bandwidth = FioSamples()
  var rate = FioSamples()

  private enum CodingKeys: String, CodingKey {
    case bytes = "io_bytes"
    case kibibytes = "io_kbytes"
    case bandwidthBytes = "bw_bytes"
    case bandwidthKibibytes = "bw"
    case iops, runtime
    case total = "total_ios"
    case short = "short_ios"
    case dropped = "drop_ios"
    case submission = "slat_ns"
    case completion = "clat_ns"
    case latency = "lat_ns"
    case bandwidthMinimum = "bw_min"
    case bandwidthMaximum = "bw_max"
    case bandwidthShare = "bw_agg"
    case bandwidthMean = "bw_mean"
    case bandwidthDeviation = "bw_dev"
    case bandwidthSamples = "bw_samples"
    case rateMinimum = "iops_min"
    case rateMaximum = "iops_max"
    case rateMean = "iops_mean"
    case rateDeviation = "iops_stddev"
    case rateSamples = "iops_samples"
  }

  init() {}

  init(from decoder: any Decoder) throws {
    let fields = try decoder.container(keyedBy: CodingKeys.self)
    bytes = try fields.decode(UInt64.self, forKey: .bytes)
    kibibytes = try fields.decode(UInt64.self, forKey: .kibibytes)
    bandwidthBytes = try fields.decode(UInt64.self, forKey: .bandwidthBytes)
    bandwidthKibibytes = try fields.decode(UInt64.self, forKey: .bandwidthKibibytes)
    iops = try fields.decode(Double.self, forKey: .iops)
    runtime = try fields.decode(Int.self, forKey: .runtime)
    total = try fields.decode(UInt64.self, forKey: .total)
    completion = try fields.decode(FioLatency.self, forKey: .completion)
    latency = try fields.decode(FioLatency.self, forKey: .latency)
  }

  func encode(to encoder: any Encoder) throws {
    var fields = encoder.container(keyedBy: CodingKeys.self)
    try fields.encode(bytes, forKey: .bytes)
    try fields.encode(kibibytes, forKey: .kibibytes)
    try fields.encode(bandwidthBytes, forKey: .bandwidthBytes)
    try fields.encode(bandwidthKibibytes, forKey: .bandwidthKibibytes)
    try fields.encode(iops, forKey: .iops)
    try fields.encode(runtime, forKey: .runtime)
    try fields.encode(total, forKey: .total)
    try fields.encode(short, forKey: .short)
    try fields.encode(dropped, forKey: .dropped)
    try fields.encode(submission, forKey: .submission)
    try fields.encode(completion, forKey: .completion)
    try fields.encode(latency, forKey: .latency)
    try fields.encode(UInt64(bandwidth.minimum), forKey: .bandwidthMinimum)
    try fields.encode(UInt64(bandwidth.maximum), forKey: .bandwidthMaximum)
    try fields.encode(total > 0 ? 100.0 : 0, forKey: .bandwidthShare)
    try fields.encode(bandwidth.mean, forKey: .bandwidthMean)
    try fields.encode(bandwidth.deviation, forKey: .bandwidthDeviation)
    try fields.encode(bandwidth.count, forKey: .bandwidthSamples)
    try fields.encode(UInt64(rate.minimum), forKey: .rateMinimum)
    try fields.encode(UInt64(rate.maximum), forKey: .rateMaximum)
    try fields.encode(rate.mean, forKey: .rateMean)
    try fields.encode(rate.deviation, forKey: .rateDeviation)
    try fields.encode(rate.count, forKey: .rateSamples)
  }
}

/// Summary of a few samples taken during a run.
struct FioSamples {
  var minimum = 0.0
  var maximum = 0.0
  var mean = 0.0
  var deviation = 0.0
  var count = 0

  init() {}

  init(_ values: [Double]) {
    minimum = values.min() ?? 0
    maximum = values.max() ?? 0
    mean = Statistics.mean(values)
    deviation = Statistics.deviation(values)
    count = values.count
  }
}

/// Flushes, which this client does not send.
struct FioSync: Codable {
  var total = 0
  var latency = FioLatency()

  enum CodingKeys: String, CodingKey {
    case total = "total_ios"
    case latency = "lat_ns"
  }
}

/// Nanoseconds.
struct FioLatency: Codable {
  var min: UInt64 = 0
  var max: UInt64 = 0
  var mean = 0.0
  var stddev = 0.0
  var count: UInt64 = 0
  /// By fio's names: `99.900000`.
  var percentile: [String: UInt64]?
  /// How many requests took how long (fio's `json+`).
  var bins: [String: UInt64]?

  enum CodingKeys: String, CodingKey {
    case min, max, mean, stddev, percentile, bins
    case count = "N"
  }
}

/// Results that fio has no field for.
struct BenchExtra: Codable {
  /// The name of what was measured, for people.
  var target: String
  var iops: Double
  /// CPU time per request, in microseconds; absent if unknown.
  var backendMicroseconds: Double?
  var clientMicroseconds: Double
  /// Context switches and system calls of the back-end per request.
  var backendSwitches: Double?
  var systemCalls: Double?
  var kicks: Double
  var calls: Double
  /// Requests a second that the client reaches against an echo.
  var ceiling: Double?
  var nearCeiling: Bool
  /// The ceiling is below the result.
  var disturbed: Bool
  /// Blocks whose contents were checked.
  var verified: UInt64
  /// Reads and writes together, nanoseconds: `50`, `90`, `99`, `99.9`, `100`.
  var latency: [String: UInt64]
  var warnings: [String]
  var conditions: Conditions?

  enum CodingKeys: String, CodingKey {
    case target, iops
    case kicks = "kicks_per_io"
    case calls = "calls_per_io"
    case ceiling, verified, warnings, conditions, disturbed
    case backendMicroseconds = "backend_cpu_us_per_io"
    case clientMicroseconds = "client_cpu_us_per_io"
    case backendSwitches = "backend_ctx_per_io"
    case systemCalls = "backend_syscalls_per_io"
    case nearCeiling = "near_ceiling"
    case latency = "latency_ns"
  }
}
