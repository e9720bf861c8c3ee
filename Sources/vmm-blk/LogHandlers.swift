/// A line of the log: when, how important, about which disk, and what.
internal import FoundationEssentials
internal import Glibc
internal import Logging
internal import VirtioCore

/// Lines for people: what they have to know is in the sentence.
struct PlainLogHandler: LogHandler {
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
    let disk = LogTime.disk(of: event).map { $0 + ": " } ?? ""
    People.error.write(Self.line(event.level, disk + event.message.description))
  }

  static func line(_ level: Logger.Level, _ text: String) -> String {
    "\(LogTime.now) \(level.rawValue) vmm-blk: \(printable(text))"
  }
}

/// Lines for programs: a JSON object each, with the members time, level, disk (if it is about one) and message.
struct JSONLogHandler: LogHandler {
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
    var members = [("time", LogTime.now), ("level", event.level.rawValue)]
    if let disk = LogTime.disk(of: event) { members.append(("disk", disk)) }
    members.append(("message", event.message.description))
    People.error.write("{" + members.map { "\(Self.text($0.0)):\(Self.text($0.1))" }.joined(separator: ",") + "}")
  }

  private static func text(_ value: String) -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .withoutEscapingSlashes
    do { return String(decoding: try encoder.encode(printable(value)), as: UTF8.self) } catch {
      preconditionFailure("a text can be encoded: \(error)")
    }
  }
}

enum LogTime {
  /// What a line is about, where there are many.
  static let diskKey = "disk"

  static func disk(of event: LogEvent) -> String? { event.metadata?[diskKey].map { "\($0)" } }

  /// Local, with its distance from UTC.
  static var now: String {
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
