/// The log options and the log level of every command that serves disks.
public import ArgumentParser
public import Logging
internal import Synchronization

struct LogOptions: ParsableArguments {
  @Option(help: "The lowest level to log to standard error: trace, debug, info, notice, warning, error, critical.")
  var logLevel = Logger.Level.info

  @Option(help: "The format of the log: readable text, json with one object per line, or journal, with levels for systemd.")
  var logFormat = LogFormat.text
}

enum LogFormat: String, ExpressibleByArgument, CaseIterable {
  case text
  case json
  case journal
}

/// The level of all loggers of the process, which can be changed while they are used.
final class LogLevel: Sendable {
  private let level: Mutex<Logger.Level>

  init(_ level: Logger.Level) { self.level = Mutex(level) }

  var now: Logger.Level {
    get { level.withLock { $0 } }
    set { level.withLock { $0 = newValue } }
  }
}

// swift-format-ignore: AvoidRetroactiveConformances
extension Logger.Level: @retroactive ExpressibleByArgument {}
