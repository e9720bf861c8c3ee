/// What the back-end costs: CPU time, context switches and system calls, as far as they can be measured.
internal import CLinux
internal import Glibc
internal import VirtioBlkDevice
internal import VirtioCore

/// Totals at one moment; what is unknown is `nil`.
struct BackendSample: Sendable {
  /// Nanoseconds, including the kernel's I/O workers for the process.
  var cpu: UInt64?
  /// Context switches.
  var switches: UInt64?
  var systemCalls: UInt64?

  /// What happened in between.
  func since(_ before: BackendSample) -> BackendSample {
    func difference(_ path: KeyPath<BackendSample, UInt64?>) -> UInt64? {
      guard let now = self[keyPath: path], let then = before[keyPath: path] else { return nil }
      // The counts of threads that ended are gone.
      return now >= then ? now - then : 0
    }
    return BackendSample(
      cpu: difference(\.cpu), switches: difference(\.switches), systemCalls: difference(\.systemCalls))
  }
}

protocol BackendMeter: Sendable {
  /// The process that is measured, if it is another one.
  var process: Int32? { get }
  /// The samples include the cost of the client's threads and the caller's.
  var includesClient: Bool { get }
  /// Reading the switches of a thousand threads takes a tenth of a second, so the process's clock has to be read on the
  /// side where the measured time lies.
  func sample(_ edge: SampleEdge) -> BackendSample
}

/// Which end of the measured time a sample is taken at.
enum SampleEdge {
  case begin, end
}

/// Another process.
struct ProcessMeter: BackendMeter {
  let process: Int32?
  var includesClient: Bool { false }

  func sample(_ edge: SampleEdge) -> BackendSample {
    guard let process else { return BackendSample() }
    var sample = BackendSample()
    if edge == .end { sample.cpu = Clock.process(process) }
    sample.switches = ProcessFiles.switches(of: process)
    if edge == .begin { sample.cpu = Clock.process(process) }
    return sample
  }
}

/// A device in this process.
struct OwnProcessMeter: BackendMeter {
  let device: BlockDevice?
  var process: Int32? { nil }
  var includesClient: Bool { true }

  func sample(_ edge: SampleEdge) -> BackendSample {
    var (user, system, switches): (UInt64, UInt64, UInt64) = (0, 0, 0)
    unsafe clinux_usage(1, &user, &system, &switches)
    return BackendSample(cpu: Clock.ownProcess(), switches: switches, systemCalls: device?.counters.systemCalls)
  }
}

/// What /proc says of a process.
enum ProcessFiles {
  /// Context switches of all threads that exist now.
  static func switches(of process: Int32) -> UInt64? {
    let tasks = tasks(of: process)
    guard !tasks.isEmpty else { return nil }
    var total: UInt64 = 0
    for task in tasks {
      for line in (text("\(task)/status") ?? "").split(separator: "\n") where line.contains("ctxt_switches:") {
        total &+= line.split(whereSeparator: \.isWhitespace).last.flatMap { UInt64($0) } ?? 0
      }
    }
    return total
  }

  /// The directories of the threads of a process; none when it is gone.
  private static func tasks(of process: Int32) -> [String] {
    let path = "/proc/\(process)/task"
    guard let directory = unsafe opendir(path) else { return [] }
    defer { unsafe closedir(directory) }
    var found: [String] = []
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
        unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      if name.first?.isNumber == true { found.append("\(path)/\(name)") }
    }
    return found
  }

  /// The CPUs that the busiest thread of a process may run on; `nil` when the process is gone.
  static func busiestThreadProcessors(of process: Int32) -> Set<Int>? {
    var busiest: (task: String, time: UInt64)? = nil
    for task in tasks(of: process) {
      guard let time = text("\(task)/schedstat")?.split(separator: " ").first.flatMap({ UInt64($0) }) else { continue }
      if time >= busiest?.time ?? 0 { busiest = (task, time) }
    }
    guard let busiest, let status = text("\(busiest.task)/status") else { return nil }
    guard let line = status.split(separator: "\n").first(where: { $0.hasPrefix("Cpus_allowed_list:") }) else { return nil }
    return processors(String(line.split(whereSeparator: \.isWhitespace).last ?? ""))
  }

  /// Reads `0,2-3`.
  static func processors(_ list: String) -> Set<Int> {
    var found: Set<Int> = []
    for part in list.split(separator: ",") {
      let ends = part.split(separator: "-").compactMap { Int($0) }
      guard let first = ends.first, let last = ends.last, first <= last, last < 1 << 16 else { continue }
      found.formUnion(first...last)
    }
    return found
  }

  /// A small file as text.
  static func text(_ path: String) -> String? {
    let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16384)
    while bytes.count < 1 << 24 {
      let count = unsafe read(file, &chunk, chunk.count)
      guard count > 0 else { break }
      bytes += chunk[..<count]
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}
