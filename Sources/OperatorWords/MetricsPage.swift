/// The metrics of a process as a page for collectors. Docs/control.md lists the families.
package import MetricsExport
internal import VirtioBlkDevice

package enum MetricsPage {
  /// The bounds of exported histograms, in nanoseconds, from 1 µs to 10 s. They are few, because collectors keep a series for
  /// each bound.
  private static let bounds: [UInt64] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
    20_000_000, 50_000_000, 100_000_000, 200_000_000, 500_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000, 10_000_000_000,
  ]

  package static func page(_ metrics: Operator.Metrics) -> Exposition {
    var page = Exposition()
    process(metrics.process, &page)
    disks(metrics.disks, &page)
    return page
  }

  private static func process(_ process: Operator.ProcessMetrics, _ page: inout Exposition) {
    page.begin("vmm_blk_build_info", .gauge, "The program that serves.")
    page.sample([("program", process.program)], true)
    page.begin("vmm_blk_sandbox", .gauge, "1 for each restriction of the process.")
    for part in process.sandbox ?? [] { page.sample([("part", part)], true) }
    page.begin("process_start_time_seconds", .gauge, "When the process started to serve, seconds since the epoch.")
    page.sample([], process.startTime)
    page.begin("process_cpu_seconds_total", .counter, "CPU time, user and system.")
    page.sample([], seconds(process.cpuTime))
    page.begin("process_resident_memory_bytes", .gauge, "Resident memory.")
    page.sample([], process.residentMemory)
    page.begin("process_open_fds", .gauge, "Open descriptors.")
    page.sample([], process.openFiles)
    page.begin("process_threads", .gauge, "Threads.")
    page.sample([], process.threads)
  }

  private static func seconds(_ nanoseconds: UInt64) -> Double { Double(nanoseconds) / 1e9 }

  private static func disks(_ disks: [Operator.DiskMetrics], _ page: inout Exposition) {
    func each(_ name: String, _ kind: Exposition.Kind, _ help: String, _ add: (Operator.DiskMetrics, Exposition.Labels) -> Void)
    {
      page.begin(name, kind, help)
      for disk in disks { add(disk, [("disk", disk.disk)]) }
    }
    func counter(_ name: String, _ help: String, _ value: KeyPath<Operator.Counters, UInt64>) {
      each(name, .counter, help) { page.sample($1, $0.counters[keyPath: value]) }
    }
    each("vmm_blk_disk_info", .gauge, "The disk, its image and its engine.") {
      page.sample($1 + [("image", $0.image), ("engine", $0.engine)], true)
    }
    each("vmm_blk_size_bytes", .gauge, "The disk's capacity.") { page.sample($1, $0.size) }
    each("vmm_blk_state", .gauge, "1 for the disk's present state.") { disk, labels in
      for state in Operator.State.allCases { page.sample(labels + [("state", state.rawValue)], disk.state == state) }
    }
    each("vmm_blk_feature", .gauge, "1 for features that the driver has accepted, 0 for those that are only offered.") {
      disk, labels in
      for feature in disk.features { page.sample(labels + [("feature", feature)], disk.chosen.contains(feature)) }
    }
    each("vmm_blk_flush_failed", .gauge, "1 if a flush has failed, so that none succeeds any more.") {
      page.sample($1, $0.flushFailed)
    }
    each("vmm_blk_requests_total", .counter, "Requests popped from the rings.") { disk, labels in
      for (kind, count) in disk.counters.byKind { page.sample(labels + [("kind", kind)], count) }
    }
    each("vmm_blk_bytes_total", .counter, "Bytes requested by reads and supplied by writes.") { disk, labels in
      page.sample(labels + [("kind", "read")], disk.counters.bytesRead)
      page.sample(labels + [("kind", "write")], disk.counters.bytesWritten)
    }
    each("vmm_blk_errors_total", .counter, "Requests answered with a status other than OK, by reason.") { disk, labels in
      let counters = disk.counters
      page.sample(labels + [("why", "medium")], counters.mediumFailures)
      page.sample(
        labels + [("why", "refused")],
        counters.ioErrors > counters.mediumFailures ? counters.ioErrors - counters.mediumFailures : 0)
      page.sample(labels + [("why", "unsupported")], counters.unsupported)
    }
    each("vmm_blk_in_flight", .gauge, "Requests popped and not yet answered.") {
      page.sample($1, UInt64(clamping: $0.depths.reduce(0, &+)))
    }
    each("vmm_blk_request_duration_seconds", .histogram, "From popping a request to publishing its answer.") {
      disk, labels in
      for (kind, latencies) in disk.latencies.sorted(by: { $0.key < $1.key }) {
        histogram(
          latencies.histogram, sum: latencies.sum, labels + [("kind", kind == "writeZeroes" ? "write_zeroes" : kind)], &page)
      }
    }
    counter("vmm_blk_throttled_total", "Requests that had to wait for a limit.", \.throttled)
    each("vmm_blk_throttled_seconds_total", .counter, "Time during which a queue had a request that waited for a limit.") {
      page.sample($1, seconds($0.counters.throttledNanoseconds))
    }
    counter("vmm_blk_kicks_total", "Notifications received from the driver.", \.kicks)
    counter("vmm_blk_calls_total", "Notifications sent to the driver.", \.calls)
    counter("vmm_blk_turns_total", "Passes of threads over their queues.", \.turns)
    counter("vmm_blk_system_calls_total", "System calls of the engine.", \.systemCalls)
    counter("vmm_blk_bounces_total", "Requests that went through an aligned copy.", \.bounces)
  }

  private static func histogram(
    _ histogram: LatencyHistogram, sum: UInt64, _ labels: Exposition.Labels, _ page: inout Exposition
  ) {
    // One pass over both, which are in ascending order.
    var buckets = histogram.buckets[...]
    var total: UInt64 = 0
    let counts = bounds.map { bound -> (Double, UInt64) in
      while let bucket = buckets.first, bucket.middle <= bound {
        total &+= bucket.count
        buckets.removeFirst()
      }
      return (seconds(bound), total)
    }
    page.histogram(labels, buckets: counts, sum: seconds(sum), count: histogram.count)
  }
}

extension Operator.Counters {
  var byKind: [(String, UInt64)] {
    [
      ("read", reads), ("write", writes), ("flush", flushes), ("discard", discards), ("write_zeroes", writeZeroes),
      ("other", others),
    ]
  }
}
