/// How long a file is that somebody may cut while it is open, asked once in a while.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// A write past the end of a file that was cut would make it long again, with zeroes where there was data before.
struct FileLength {
  /// How long an answer counts, nanoseconds.
  private static let counts: UInt64 = 100_000

  private let descriptor: Int32
  /// Bytes when it was opened.
  private let full: UInt64
  private var bytes: UInt64
  private var asked: UInt64 = 0
  /// System calls made.
  private(set) var calls: UInt64 = 0

  /// - Parameter full: bytes that it has to have.
  init(descriptor: Int32, full: UInt64) {
    self.descriptor = descriptor
    self.full = full
    bytes = full
  }

  /// It was as long as it has to be when it was asked last.
  var isFull: Bool { bytes >= full }

  /// Its last page was only a part of one then.
  var endsInAPage: Bool { bytes % UInt64(PageSize.bytes) != 0 }

  /// Whether all bytes before this offset are there.
  mutating func holds(end: UInt64) -> Bool {
    // It is no file, and its engine notices; it may be longer than it was when it was opened.
    guard descriptor >= 0 else { return true }
    let now = Clock.now
    // What is short may have grown.
    if now &- asked >= Self.counts || end > bytes {
      var info = stat()
      bytes = unsafe fstat(descriptor, &info) == 0 ? UInt64(max(info.st_size, 0)) : full
      asked = now
      calls &+= 1
    }
    return end <= bytes
  }
}
