/// A line of the log: when, how important, who, and what.
internal import Glibc
internal import Logging
internal import VirtioCore

/// Writes to standard error without waiting for its reader. Metadata is not shown: the lines are for people, and what they
/// have to know is in the sentence.
struct PlainLogHandler: LogHandler {
  var metadata: Logger.Metadata = [:]
  var logLevel = Logger.Level.info

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) { People.error.write(Self.line(event.level, event.message.description)) }

  static func line(_ level: Logger.Level, _ text: String) -> String {
    "\(time) \(level.rawValue) vmm-blk: \(printable(text))"
  }

  /// Local, with its distance from UTC.
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
