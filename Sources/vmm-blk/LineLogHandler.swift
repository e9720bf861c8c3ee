/// A line of the log: time, level, disk and message.
internal import CLinux
internal import FoundationEssentials
internal import Glibc
internal import Logging
internal import Synchronization
internal import VirtioCore

/// Writes to standard error without waiting for its reader.
struct LineLogHandler: LogHandler {
  var metadata: Logger.Metadata = [:]
  let level: LogLevel

  var logLevel: Logger.Level {
    get { level.now }
    set { level.now = newValue }
  }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let (disk, message) = (event.metadata?[LogLine.diskKey].map { "\($0)" }, event.message.description)
    People.error.write(LogLine.line(event.level, disk, message))
  }
}

enum LogLine {
  /// The metadata key of the disk that a line is about, in a process with many.
  static let diskKey = "disk"

  /// The format of every line of the process's log.
  static var format: LogFormat {
    get { chosen.withLock { $0 } }
    set { chosen.withLock { $0 = newValue } }
  }

  private static let chosen = Mutex(LogFormat.text)

  static func line(_ level: Logger.Level, _ disk: String?, _ message: String) -> String {
    let sentence = (disk.map { $0 + ": " } ?? "") + message
    return switch format {
    case .text: text(level, sentence)
    case .json: json(level, disk, message)
    case .journal: journal(level, sentence)
    }
  }

  /// For people: the sentence says what they need to know.
  private static func text(_ level: Logger.Level, _ sentence: String) -> String {
    "\(time) \(level.rawValue) vmm-blk: \(printable(sentence))"
  }

  /// For programs: an object with the members time, level, disk (if it is about one of many) and message.
  private static func json(_ level: Logger.Level, _ disk: String?, _ message: String) -> String {
    let members = [("time", time), ("level", level.rawValue)] + (disk.map { [("disk", $0)] } ?? []) + [("message", message)]
    return "{" + members.map { "\(quoted($0.0)):\(quoted($0.1))" }.joined(separator: ",") + "}"
  }

  /// For systemd's journal, which adds time and program itself, and takes the level from the line's prefix (sd-daemon(3)).
  private static func journal(_ level: Logger.Level, _ sentence: String) -> String {
    let priority =
      switch level {
      case .critical: 2
      case .error: 3
      case .warning: 4
      case .notice: 5
      case .info: 6
      case .debug, .trace: 7
      }
    return "<\(priority)>\(printable(sentence))"
  }

  private static func quoted(_ value: String) -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .withoutEscapingSlashes
    do { return String(decoding: try encoder.encode(printable(value)), as: UTF8.self) } catch {
      preconditionFailure("a text can be encoded: \(error)")
    }
  }

  /// The local time, with its offset from UTC.
  private static var time: String {
    var now = Glibc.time(nil)
    var parts = unsafe tm()
    unsafe localtime_r(&now, &parts)
    let text = unsafe [CChar](unsafeUninitializedCapacity: 64) { room, count in
      guard let start = room.baseAddress else { return }
      count = unsafe strftime(start, room.count, "%Y-%m-%dT%H:%M:%S%z", &parts)
    }
    return String(decoding: text.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
