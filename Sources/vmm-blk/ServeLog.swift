/// What a server says to its operator, on standard error.
internal import Logging
internal import VhostUser
internal import VirtioCore

/// The log of one server. Lines that a guest or a front-end can cause are metered.
final class ServeLog {
  private let logger: Logger
  /// One for each importance, so that a flood of small news does not keep a warning out.
  private var meters: [ServerEvent.Importance: Meter] = [:]

  init(level: Logger.Level) {
    var logger = Logger(label: "vmm-blk") { StreamLogHandler.standardError(label: $0) }
    logger.logLevel = level
    self.logger = logger
  }

  /// A line of our own.
  func note(_ text: String) { logger.info("\(text)") }
  func warn(_ text: String) { logger.warning("\(text)") }

  /// Every one of these can be caused from the other side of the socket, as often as that side likes.
  func event(_ event: ServerEvent) {
    let level: Logger.Level =
      switch event.importance {
      case .trace: .trace
      case .detail: .debug
      case .note: .info
      case .warning: .warning
      }
    // Who asks for everything gets everything, and what would not be written anyway uses nothing up.
    guard level >= .info else { return logger.log(level: level, "\(event)") }
    guard level >= logger.logLevel else { return }
    guard case .pass(let heldBack) = meters[event.importance, default: Meter()].ask() else { return }
    if heldBack > 0 { logger.log(level: level, "\(heldBack) lines were left out") }
    logger.log(level: level, "\(event)")
  }
}
