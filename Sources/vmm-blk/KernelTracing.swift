/// The kernel's trace points, recorded while a trace runs, in a separate tracefs instance.
internal import CLinux
internal import FoundationEssentials
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import TraceReport
internal import VirtioCore

/// Created before the trace starts. Releasing this object removes the tracefs instance.
final class KernelTracing {
  private static let roots = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
  /// The size of the buffers of all CPUs together, in KiB.
  private static let bufferKiB = 32768

  private let folder: String
  private let process: Int32
  private var threads: Set<Int>
  /// This object created the instance.
  private var isMade = false

  /// - Parameter process: the server.
  init(process: Int32) throws(KernelTracingFailure) {
    guard let root = Self.roots.first(where: { unsafe access($0 + "/instances", F_OK) == 0 }) else { throw .notMounted }
    folder = "\(root)/instances/vmm-blk-\(getpid())"
    self.process = process
    threads = Self.threads(of: process)
    guard unsafe mkdir(folder, 0o700) == 0 else { throw .refused(root, Errno(rawValue: errno)) }
    isMade = true
    try prepare()
  }

  deinit { if isMade { _ = unsafe rmdir(folder) } }

  private func prepare() throws(KernelTracingFailure) {
    try set("tracing_on", "0")
    // The same clock as the rest of the trace.
    try set("trace_clock", "mono")
    let processors = max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
    try set("buffer_size_kb", "\(max(64, Self.bufferKiB / processors))")
    for event in KernelTrace.events {
      guard unsafe access("\(folder)/events/\(event)", F_OK) == 0 else { throw .noEvent(event) }
      try set("events/\(event)/enable", "1")
    }
  }

  func start() throws(KernelTracingFailure) { try set("tracing_on", "1") }

  /// Ends the recording.
  func finish() throws(KernelTracingFailure) -> KernelTrace {
    try set("tracing_on", "0")
    threads.formUnion(Self.threads(of: process))
    // Process names may be any bytes.
    return KernelTrace(String(decoding: try contents(of: folder + "/trace"), as: UTF8.self), threads: threads)
  }

  /// A tracefs file does not report its length.
  private func contents(of path: String) throws(KernelTracingFailure) -> [UInt8] {
    var bytes: [UInt8] = []
    do {
      let file = try FileDescriptor.open(FilePath(path), .readOnly, options: [.closeOnExec])
      try file.closeAfter {
        var part = [UInt8](repeating: 0, count: 1 << 16)
        while true {
          let count = try unsafe part.withUnsafeMutableBytes { try unsafe file.read(into: $0) }
          guard count > 0 else { return }
          bytes += part[..<count]
        }
      }
    } catch { throw .unreadable(path, error as? Errno ?? .ioError) }
    return bytes
  }

  private func set(_ name: String, _ value: String) throws(KernelTracingFailure) {
    let path = "\(folder)/\(name)"
    do {
      let file = try FileDescriptor.open(FilePath(path), .writeOnly, options: [.closeOnExec])
      try file.closeAfter { _ = try file.writeAll(value.utf8) }
    } catch { throw .refused(path, error as? Errno ?? .ioError) }
  }

  private static func threads(of process: Int32) -> Set<Int> {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/task")) ?? []
    return Set(names.compactMap { Int($0) })
  }
}

/// Why the kernel's trace points cannot be recorded: one sentence.
enum KernelTracingFailure: Error, CustomStringConvertible, ErrorWithStatus {
  case notMounted
  case refused(String, Errno)
  case noEvent(String)
  case unreadable(String, Errno)

  var description: String {
    switch self {
    case .notMounted:
      "--kernel needs tracefs, which is not mounted at /sys/kernel/tracing: 'mount -t tracefs tracefs /sys/kernel/tracing', or leave "
        + "out --kernel"
    case .refused(let path, let error):
      "--kernel cannot use the kernel's trace points: \(path): \(error). They need root: run as root, or leave out --kernel"
    case .noEvent(let name): "--kernel needs the trace point \(name), which this kernel does not have: leave out --kernel"
    case .unreadable(let path, let error): "the kernel's trace in \(path) cannot be read: \(error)"
    }
  }

  var status: ExitStatus { .failure }
}
