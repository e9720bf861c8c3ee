/// What a service manager passes in the environment, read once and removed from it: it is for this process only.
internal import Glibc

/// First read before other threads exist, because the environment must not change under them.
struct ServiceEnvironment {
  /// Where to report the state of the service.
  let notifySocket: String?
  /// The watchdog interval of the manager.
  let watchdog: Duration?
  /// Descriptors that were passed, from 3 on.
  let descriptors: Range<Int32>

  static let taken = ServiceEnvironment()

  /// More than any service has; a number beyond it is a mistake.
  private static let descriptorLimit: Int32 = 4096

  private init() {
    notifySocket = Self.take("NOTIFY_SOCKET").flatMap { $0.isEmpty ? nil : $0 }
    let ourselves = getpid()
    let (interval, watched) = (Self.take("WATCHDOG_USEC"), Self.take("WATCHDOG_PID"))
    // Without a process number it is meant for any process.
    let isWatched = watched.map { Int32($0) == ourselves } ?? true
    watchdog = interval.flatMap { Int64($0) }.flatMap { isWatched && $0 > 0 ? .microseconds($0) : nil }
    let (process, count, _) = (Self.take("LISTEN_PID"), Self.take("LISTEN_FDS"), Self.take("LISTEN_FDNAMES"))
    // An intermediate process, such as a shell, may pass on variables that are not meant for this process.
    let passed = process.flatMap { Int32($0) } == ourselves ? count.flatMap { Int32($0) } ?? 0 : 0
    descriptors = 3..<3 + min(max(passed, 0), Self.descriptorLimit)
  }

  private static func take(_ name: String) -> String? {
    guard let value = unsafe getenv(name) else { return nil }
    defer { _ = unsafe unsetenv(name) }
    return unsafe String(cString: value)
  }
}
