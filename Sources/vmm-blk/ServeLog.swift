/// What a server reports to its operator, on standard error.
internal import Control
internal import Logging
internal import OperatorWords
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

/// The log of one server, or of one disk of many. Lines that a guest or a front-end can cause are rate-limited, for each
/// disk separately.
final class ServeLog {
  /// The level of the whole process's log.
  let level: LogLevel
  private let logger: Logger
  /// Which disk the lines are about; `nil`: the server, or its only disk.
  private let disk: Logger.Metadata?
  /// One for each level, so that a flood of unimportant lines does not suppress a warning.
  private var meters: [ServerEvent.Importance: Meter] = [:]
  private var controlMeter = Meter()

  init(_ options: LogOptions) {
    let level = LogLevel(options.logLevel)
    self.level = level
    LogLine.format = options.logFormat
    logger = Logger(label: "vmm-blk") { _ in LineLogHandler(level: level) }
    disk = nil
  }

  private init(_ log: ServeLog, disk: String) {
    level = log.level
    logger = log.logger
    self.disk = [LogLine.diskKey: "\(disk)"]
  }

  /// The same log for the events of one disk of many.
  func about(_ disk: String) -> ServeLog { ServeLog(self, disk: disk) }

  /// Logs a line that is not rate-limited.
  func note(_ text: String) { logger.info("\(text)", metadata: disk) }
  func warn(_ text: String) { logger.warning("\(text)", metadata: disk) }

  /// Which engines serve the disks and why: a line for each reason, not for each disk.
  func noteEngines(of devices: [BlockDevice]) {
    func each(_ sentence: (BlockDevice) -> String?, _ say: (String) -> Void) {
      var counts: [String: Int] = [:]
      for device in devices { if let text = sentence(device) { counts[text, default: 0] += 1 } }
      for (text, count) in counts.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
        say(devices.count == 1 ? text : "\(count) of \(devices.count) disks: \(text)")
      }
    }
    each(\.engineWarning, warn)
    each({ "engine: \($0.engineReason)" }, note)
  }

  /// Anyone who can reach the control socket can cause these.
  func event(_ event: ControlEvent) {
    guard case .pass(let heldBack) = controlMeter.ask() else { return }
    if heldBack > 0 { logger.warning("\(heldBack) lines were left out", metadata: disk) }
    logger.warning("\(event)", metadata: disk)
  }

  /// A front-end can cause each of these as often as it likes.
  func event(_ event: ServerEvent) {
    let level: Logger.Level =
      switch event.importance {
      case .trace: .trace
      case .detail: .debug
      case .note: .info
      case .warning: .warning
      }
    let text = Self.text(of: event)
    // At the level that shows everything nothing is suppressed, and lines that would not be written anyway do not count.
    guard level >= .info else { return logger.log(level: level, "\(text)", metadata: disk) }
    guard level >= logger.logLevel else { return }
    guard case .pass(let heldBack) = meters[event.importance, default: Meter()].ask() else { return }
    if heldBack > 0 { logger.log(level: level, "\(heldBack) lines were left out", metadata: disk) }
    logger.log(level: level, "\(text)", metadata: disk)
  }

  /// With the specification's names, which the transport does not know for block devices.
  private static func text(of event: ServerEvent) -> String {
    guard case .negotiated(let features, let agreed) = event else { return "\(event)" }
    return "\(chosen(features)); of the protocol: \(agreed.nameList.isEmpty ? "none" : agreed.nameList.joined(separator: " "))"
  }

  /// What was negotiated with a driver.
  static func chosen(_ features: FeatureSet) -> String {
    let names = Operator.names(of: features)
    return "the driver chose \(names.isEmpty ? "no feature" : names.joined(separator: " "))"
  }
}
