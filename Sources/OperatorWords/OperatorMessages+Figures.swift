/// Metrics in the messages of the control socket.
package import VirtioBlkDevice

extension Operator {
  /// Counts since the disk was opened.
  package struct Counters: Codable {
    package var reads: UInt64
    package var writes: UInt64
    package var flushes: UInt64
    package var discards: UInt64
    package var writeZeroes: UInt64
    package var others: UInt64
    package var failures: UInt64
    package var ioErrors: UInt64
    package var unsupported: UInt64
    package var mediumFailures: UInt64
    package var bytesRead: UInt64
    package var bytesWritten: UInt64
    package var kicks: UInt64
    package var calls: UInt64
    package var turns: UInt64
    package var systemCalls: UInt64
    package var bounces: UInt64
    /// Requests that had to wait for a limit.
    package var throttled: UInt64
    /// Nanoseconds during which a queue had such a request, summed over all queues.
    package var throttledNanoseconds: UInt64

    package init(
      reads: UInt64, writes: UInt64, flushes: UInt64, discards: UInt64, writeZeroes: UInt64, others: UInt64, failures: UInt64,
      ioErrors: UInt64, unsupported: UInt64, mediumFailures: UInt64, bytesRead: UInt64, bytesWritten: UInt64, kicks: UInt64,
      calls: UInt64, turns: UInt64, systemCalls: UInt64, bounces: UInt64, throttled: UInt64, throttledNanoseconds: UInt64
    ) {
      self.reads = reads
      self.writes = writes
      self.flushes = flushes
      self.discards = discards
      self.writeZeroes = writeZeroes
      self.others = others
      self.failures = failures
      self.ioErrors = ioErrors
      self.unsupported = unsupported
      self.mediumFailures = mediumFailures
      self.bytesRead = bytesRead
      self.bytesWritten = bytesWritten
      self.kicks = kicks
      self.calls = calls
      self.turns = turns
      self.systemCalls = systemCalls
      self.bounces = bounces
      self.throttled = throttled
      self.throttledNanoseconds = throttledNanoseconds
    }
  }

  /// The answer to `metrics`.
  package struct Metrics: Codable {
    package var process: ProcessMetrics
    package var disks: [DiskMetrics]

    package init(process: ProcessMetrics, disks: [DiskMetrics]) {
      self.process = process
      self.disks = disks
    }
  }

  package struct ProcessMetrics: Codable {
    package var program: String
    /// When it began to serve, seconds since 1970.
    package var startTime: UInt64
    /// CPU time, nanoseconds.
    package var cpuTime: UInt64
    /// Resident memory, in bytes.
    package var residentMemory: UInt64
    package var openFiles: UInt64
    package var threads: UInt64
    /// What the process has given up; `nil` from a server of an earlier version.
    package var sandbox: [String]?

    package init(
      program: String, startTime: UInt64, cpuTime: UInt64, residentMemory: UInt64, openFiles: UInt64, threads: UInt64,
      sandbox: [String]? = nil
    ) {
      self.program = program
      self.startTime = startTime
      self.cpuTime = cpuTime
      self.residentMemory = residentMemory
      self.openFiles = openFiles
      self.threads = threads
      self.sandbox = sandbox
    }
  }

  package struct DiskMetrics: Codable {
    package var disk: String
    package var image: String
    /// Bytes.
    package var size: UInt64
    package var engine: String
    package var state: State
    package var flushFailed: Bool
    /// Names of the features that it offers, and of those that the driver has chosen.
    package var features: [String]
    package var chosen: [String]
    package var counters: Counters
    /// Requests in flight, by queue. The last queues are left out if they have none.
    package var depths: [Int]
    /// By kind of request.
    package var latencies: [String: Histogram]

    package init(
      disk: String, image: String, size: UInt64, engine: String, state: State, flushFailed: Bool, features: [String],
      chosen: [String], counters: Counters, depths: [Int], latencies: [String: Histogram]
    ) {
      self.disk = disk
      self.image = image
      self.size = size
      self.engine = engine
      self.state = state
      self.flushFailed = flushFailed
      self.features = features
      self.chosen = chosen
      self.counters = counters
      self.depths = depths
      self.latencies = latencies
    }
  }

  /// How many requests took how long.
  package struct Histogram: Codable {
    /// The time of all requests together, in nanoseconds.
    package var sum: UInt64
    /// Three numbers each: the lower bound (inclusive) and the upper bound (exclusive) in nanoseconds, and the number of
    /// requests.
    package var buckets: [[UInt64]]

    package init(sum: UInt64, buckets: [[UInt64]]) {
      self.sum = sum
      self.buckets = buckets
    }
  }
}

extension Operator.Counters {
  package init(_ counters: BlockCounters) {
    self.init(
      reads: counters.reads, writes: counters.writes, flushes: counters.flushes, discards: counters.discards,
      writeZeroes: counters.writeZeroes, others: counters.others, failures: counters.failures, ioErrors: counters.ioErrors,
      unsupported: counters.unsupported, mediumFailures: counters.mediumFailures, bytesRead: counters.bytesRead,
      bytesWritten: counters.bytesWritten, kicks: counters.kicks, calls: counters.calls, turns: counters.turns,
      systemCalls: counters.systemCalls, bounces: counters.bounces, throttled: counters.throttled,
      throttledNanoseconds: counters.throttledNanoseconds)
  }
}

extension Operator.Histogram {
  package init(_ histogram: LatencyHistogram) {
    self.init(
      sum: histogram.sum, buckets: histogram.buckets.map { [$0.range.lowerBound, $0.range.upperBound, $0.count] })
  }

  /// As the device has it. Invalid buckets, which may have come over a socket, are left out.
  package var histogram: LatencyHistogram {
    var histogram = LatencyHistogram()
    for bucket in buckets where bucket.count == 3 && bucket[0] < bucket[1] {
      histogram.add(bucket[0] + (bucket[1] - 1 - bucket[0]) / 2, count: bucket[2])
    }
    return histogram
  }
}
