/// The metrics of a running process, as its operator gets them.
internal import CLinux
internal import FoundationEssentials
internal import Glibc
internal import OperatorWords
internal import Sandbox
internal import VirtioBlkDevice
internal import VirtioCore

/// Collected on request, for the metrics page or the control socket, on the loop's thread, and without delaying any disk.
final class OperatorFigures {
  private unowned let service: any OperatedService
  private let start = Clock.now
  /// Seconds since 1970.
  private let startTime = UInt64(clamping: time(nil))

  init(of service: any OperatedService) { self.service = service }

  /// Seconds since the process began to serve.
  var uptime: UInt64 { (Clock.now &- start) / 1_000_000_000 }

  /// The metrics of every disk.
  var all: Operator.Metrics {
    of(service.disks.map { ($0, $0.state) } + service.leavingDisks.map { ($0, .draining) })
  }

  func of(_ disks: [(any OperatedDisk, Operator.State)]) -> Operator.Metrics {
    Operator.Metrics(
      process: .own(since: startTime, sandbox: service.sandbox.parts), disks: disks.map { Operator.DiskMetrics($0.0, $0.1) })
  }
}

extension Operator.DiskMetrics {
  init(_ disk: any OperatedDisk, _ state: Operator.State) {
    let metrics = disk.device.metrics()
    var latencies: [String: Operator.Histogram] = [:]
    for (kind, histogram) in metrics.latencies where histogram.count > 0 {
      latencies["\(kind)"] = Operator.Histogram(histogram)
    }
    let depths = metrics.depths.reversed().drop { $0 == 0 }.reversed()
    self.init(
      disk: disk.name, image: disk.device.image.path, size: disk.device.image.size, engine: disk.device.engine.rawValue,
      state: state, flushFailed: disk.device.image.state.flushFailed.loadRelaxed() != 0,
      features: Operator.names(of: disk.device.features), chosen: disk.driver?.features ?? [],
      counters: Operator.Counters(metrics.counters), depths: Array(depths), latencies: latencies)
  }
}

extension Operator.ProcessMetrics {
  /// The metrics of this process.
  ///
  /// - Parameters:
  ///   - start: when it began to serve, seconds since 1970.
  ///   - sandbox: what it has given up.
  static func own(since start: UInt64, sandbox: [String]) -> Self {
    var time = timespec()
    unsafe clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    // Resident pages are the second number in statm; the number of threads is field 20 in stat, counting the pid and the name.
    let pages = text(of: "/proc/self/statm").split(separator: " ").dropFirst().first.flatMap { UInt64($0) } ?? 0
    let fields = text(of: "/proc/self/stat").split(separator: ")").last?.split(separator: " ") ?? []
    let files = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count) ?? 0
    return Self(
      program: Version.text, startTime: start,
      cpuTime: UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec),
      residentMemory: pages &* UInt64(clamping: sysconf(Int32(_SC_PAGESIZE))),
      // Reading the list itself opens one.
      openFiles: UInt64(clamping: max(files - 1, 0)), threads: fields.count > 17 ? UInt64(fields[17]) ?? 0 : 0,
      sandbox: sandbox)
  }

  private static func text(of path: String) -> String {
    (try? Data(contentsOf: URL(fileURLWithPath: path))).map { String(decoding: $0, as: UTF8.self) } ?? ""
  }
}
