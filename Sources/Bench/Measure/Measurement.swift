/// What one run measured.
internal import Histogram

struct Measurement: Sendable {
  var workload: Workload
  /// Latencies in nanoseconds.
  var reads: Histogram<UInt64>
  var writes: Histogram<UInt64>
  /// Seconds that were measured.
  var seconds: Double
  var client: ThreadUsage
  /// What is not known is `nil`.
  var backend: BackendSample
  var kicks: UInt64
  var calls: UInt64
  var verified: UInt64
  /// Requests per second, one value for each half second.
  var samples: [Double]
  /// What the client could do at most, requests per second.
  var ceiling: Double?
  /// System calls of the back-end per second, as perf counted them.
  var backendCallsPerSecond: Double?

  init(
    workload: Workload, outcomes: [ThreadOutcome], main: ThreadUsage, backend: BackendSample, includesClient: Bool,
    samples: [Double]
  ) {
    self.workload = workload
    var tally = QueueTally()
    var client = ThreadUsage()
    for outcome in outcomes {
      tally.add(outcome.tally)
      client = client + outcome.usage
    }
    // A thread that never ran has no times.
    let measured = outcomes.filter { $0.end > $0.start }
    let start = measured.map(\.start).min() ?? 0
    let end = measured.map(\.end).max() ?? 0
    seconds = Double(end &- start) / 1e9
    reads = tally.reads
    writes = tally.writes
    kicks = tally.kicks
    calls = tally.calls
    verified = tally.verified
    self.client = client
    self.samples = samples
    self.backend = backend
    if includesClient {
      let ours = client + main
      self.backend.cpu = backend.cpu.map { $0 > ours.cpu ? $0 - ours.cpu : 0 }
      self.backend.switches = backend.switches.map { $0 > ours.switches ? $0 - ours.switches : 0 }
    }
  }

  var requests: UInt64 { reads.totalCount + writes.totalCount }
  /// Requests a second.
  var iops: Double { seconds > 0 ? Double(requests) / seconds : 0 }
  /// Bytes a second.
  var bandwidth: Double { iops * Double(workload.blockSize) }

  /// Both directions together.
  var latencies: Histogram<UInt64> {
    guard writes.totalCount > 0 else { return reads }
    guard reads.totalCount > 0 else { return writes }
    var all = reads
    all.add(writes)
    return all
  }

  /// A cost per request; `nil` if unknown.
  func perRequest(_ total: UInt64?) -> Double? {
    guard let total, requests > 0 else { return nil }
    return Double(total) / Double(requests)
  }

  /// CPU time per request, in microseconds.
  var backendMicroseconds: Double? { perRequest(backend.cpu).map { $0 / 1000 } }
  var clientMicroseconds: Double { (perRequest(client.cpu) ?? 0) / 1000 }

  /// System calls of the back-end per request.
  var systemCallsPerRequest: Double? {
    perRequest(backend.systemCalls) ?? backendCallsPerSecond.flatMap { iops > 0 ? $0 / iops : nil }
  }

  /// The ceiling is below the result, so something else had the CPU while one of them was measured.
  var isDisturbed: Bool { ceiling.map { iops > $0 } ?? false }

  /// The client is so close to its ceiling that it limits the result.
  var isNearCeiling: Bool { ceiling.map { iops > 0.8 * $0 } ?? false }
}
