/// The length of a file that somebody may truncate while it is open, queried once in a while.
internal import CLinux
internal import VirtioCore

/// A write past the end of a truncated file would extend it again, with zeroes where there was data before.
struct FileLength {
  /// How long an answer is valid, nanoseconds.
  private static let counts: UInt64 = 100_000

  private let descriptor: Int32
  /// Bytes when it was opened.
  private let full: UInt64
  private var bytes: UInt64
  private var asked: UInt64 = 0
  /// System calls made.
  private(set) var calls: UInt64 = 0

  /// - Parameter full: bytes that it is expected to have.
  init(descriptor: Int32, full: UInt64) {
    self.descriptor = descriptor
    self.full = full
    bytes = full
  }

  /// Whether it had its full length when it was last queried.
  var isFull: Bool { bytes >= full }

  /// Whether its last page was incomplete then.
  var endsInAPage: Bool { bytes % UInt64(PageSize.bytes) != 0 }

  /// Whether all bytes before this offset are there.
  mutating func holds(end: UInt64) -> Bool {
    // Without a file there is nothing to query, and the engine notices by itself; it may be longer than it was when it was
    // opened.
    guard descriptor >= 0 else { return true }
    let now = Clock.now
    // A file that was too short may have grown.
    if now &- asked >= Self.counts || end > bytes {
      let length = clinux_file_length(descriptor)
      bytes = length >= 0 ? UInt64(length) : full
      asked = now
      calls &+= 1
    }
    return end <= bytes
  }
}
