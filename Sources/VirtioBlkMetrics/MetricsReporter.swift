/// The metrics of a disk for programs that embed the device and use swift-metrics: counters, gauges and latencies reach
/// whatever such a program bootstrapped (StatsD, OpenTelemetry, Prometheus …), under the names that `vmm-blk serve --metrics`
/// uses.
public import CoreMetrics
public import VirtioBlkDevice

/// Reports to a metrics system what a disk did since the last report. One reporter for each disk; reporting costs the disk's
/// queues nothing, as it only reads what they have counted anyway.
///
///     var reporter = MetricsReporter(disk: "vda")
///     while running { reporter.report(device.metrics()); sleep(10) }
public struct MetricsReporter {
  /// The quantiles that are reported for each kind of request, of the latencies since the last report.
  public static let quantiles = [0.5, 0.9, 0.99, 0.999]

  private struct Total {
    let counter: Counter
    let value: (BlockMetrics) -> UInt64
  }
  private struct Seconds {
    let counter: FloatingPointCounter
    let nanoseconds: (BlockMetrics) -> UInt64
  }

  private let factory: any MetricsFactory
  private let disk: String
  private let totals: [Total]
  private let seconds: [Seconds]
  private let inFlight: Meter
  private var latencies: [RequestKind: [Meter]] = [:]
  private var last = BlockMetrics()

  /// - Parameters:
  ///   - disk: the value of each metric's dimension `disk`.
  ///   - factory: who collects; by default the one that the program bootstrapped.
  public init(disk: String, factory: any MetricsFactory = MetricsSystem.factory) {
    (self.factory, self.disk) = (factory, disk)
    func total(_ name: String, _ dimensions: [(String, String)] = [], _ value: @escaping (BlockMetrics) -> UInt64) -> Total {
      Total(
        counter: Counter(label: "vmm_blk_\(name)_total", dimensions: [("disk", disk)] + dimensions, factory: factory),
        value: value)
    }
    let kinds: [(RequestKind, KeyPath<BlockCounters, UInt64>)] = [
      (.read, \.reads), (.write, \.writes), (.flush, \.flushes), (.discard, \.discards), (.writeZeroes, \.writeZeroes),
      (.other, \.others),
    ]
    totals =
      kinds.map { kind, count in total("requests", [("kind", kind.label)]) { $0.counters[keyPath: count] } } + [
        total("bytes", [("kind", "read")]) { $0.counters.bytesRead },
        total("bytes", [("kind", "write")]) { $0.counters.bytesWritten },
        total("errors", [("why", "medium")]) { $0.counters.mediumFailures },
        total("errors", [("why", "refused")]) { $0.counters.refusals },
        total("errors", [("why", "unsupported")]) { $0.counters.unsupported },
        total("throttled") { $0.counters.throttled },
        total("kicks") { $0.counters.kicks },
        total("calls") { $0.counters.calls },
        total("turns") { $0.counters.turns },
        total("system_calls") { $0.counters.systemCalls },
        total("bounces") { $0.counters.bounces },
      ]
    seconds = [
      Seconds(
        counter: FloatingPointCounter(
          label: "vmm_blk_throttled_seconds_total", dimensions: [("disk", disk)], factory: factory),
        nanoseconds: { $0.counters.throttledNanoseconds })
    ]
    inFlight = Meter(label: "vmm_blk_in_flight", dimensions: [("disk", disk)], factory: factory)
  }

  /// Reports what happened since the last report, or since the device was made; for latencies, the quantiles of those requests.
  ///
  /// - Parameter metrics: those of one device each time. Counters that became smaller, because the device is another one, count
  ///   from 0.
  public mutating func report(_ metrics: BlockMetrics) {
    for total in totals { total.counter.increment(by: Int64(clamping: grown(total.value, metrics))) }
    for part in seconds { part.counter.increment(by: Double(grown(part.nanoseconds, metrics)) / 1e9) }
    inFlight.set(Double(metrics.depth))
    for (kind, histogram) in metrics.latencies {
      let recent = last.latencies[kind].map { histogram.since($0) } ?? histogram
      guard recent.count > 0 else { continue }
      for (meter, part) in zip(meters(kind), Self.quantiles) { meter.set(Double(recent.quantile(part) ?? 0) / 1e9) }
    }
    last = metrics
  }

  private func grown(_ value: (BlockMetrics) -> UInt64, _ metrics: BlockMetrics) -> UInt64 {
    let (before, now) = (value(last), value(metrics))
    return now >= before ? now - before : now
  }

  /// Created when a kind of request first occurs, because most disks never see some kinds.
  private mutating func meters(_ kind: RequestKind) -> [Meter] {
    if let made = latencies[kind] { return made }
    let made = Self.quantiles.map { part in
      Meter(
        label: "vmm_blk_request_duration_seconds",
        dimensions: [("disk", disk), ("kind", kind.label), ("quantile", "\(part)")], factory: factory)
    }
    latencies[kind] = made
    return made
  }
}

extension RequestKind {
  /// The value of the dimension `kind`.
  fileprivate var label: String { self == .writeZeroes ? "write_zeroes" : "\(self)" }
}
