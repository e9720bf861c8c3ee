/// What `vmm-blk guest` shows: hexdumps, a line of progress; and the files it copies from and to.
internal import CLinux
internal import Foundation
internal import GuestDriver
internal import SystemPackage
internal import VirtioCore

/// The classic layout: offset, sixteen bytes, their printable characters. Repeated lines are shown as one `*`.
struct Hexdump {
  private var pending: [UInt8] = []
  private var next: UInt64 = 0
  private var last: [UInt8] = []
  private var isRepeating = false

  mutating func print(_ bytes: ArraySlice<UInt8>, at offset: UInt64) {
    if pending.isEmpty { next = offset }
    pending += bytes
    var place = 0
    while pending.count - place >= 16 {
      line(Array(pending[place..<place + 16]))
      place += 16
    }
    pending.removeFirst(place)
  }

  mutating func finish() {
    if !pending.isEmpty { line(pending) }
    Swift.print(Self.hex(next, digits: 8))
  }

  private mutating func line(_ bytes: [UInt8]) {
    defer { next += UInt64(bytes.count) }
    guard bytes != last else {
      if !isRepeating { Swift.print("*") }
      isRepeating = true
      return
    }
    isRepeating = false
    last = bytes
    var text = Self.hex(next, digits: 8) + " "
    for place in 0..<16 {
      if place % 8 == 0 { text += " " }
      text += place < bytes.count ? Self.hex(UInt64(bytes[place]), digits: 2) + " " : "   "
    }
    let letters = bytes.map { (32..<127).contains($0) ? Character(UnicodeScalar($0)) : "." }
    Swift.print(text + " |" + String(letters) + "|")
  }

  private static func hex(_ value: UInt64, digits: Int) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: max(digits - text.count, 0)) + text
  }
}

/// A progress line that is redrawn in place; nothing is shown if standard error is not a terminal.
struct ProgressLine {
  private let verb: String
  private let total: UInt64?
  private let isShown = isatty(STDERR_FILENO) != 0
  private let start = ContinuousClock.now
  private var lastShown: ContinuousClock.Instant? = nil

  init(_ verb: String, of total: UInt64? = nil) {
    self.verb = verb
    self.total = total
  }

  mutating func show(_ bytes: UInt64, _ more: String = "") {
    guard isShown, lastShown.map({ .now - $0 > .milliseconds(100) }) ?? true else { return }
    lastShown = .now
    let seconds = max((.now - start) / .seconds(1), 0.001)
    var text = "\(verb) \(ByteSize.describe(bytes))"
    if let total, total > 0 { text += " of \(ByteSize.describe(total)) (\(bytes * 100 / total) %)" }
    text += ", \(ByteSize.describe(UInt64(Double(bytes) / seconds)))/s\(more)"
    Self.write("\r\u{1b}[K" + text)
  }

  /// Erases the line.
  mutating func finish() {
    if lastShown != nil { Self.write("\r\u{1b}[K") }
    lastShown = nil
  }

  private static func write(_ text: String) { _ = try? FileDescriptor.standardError.writeAll(text.utf8) }
}

/// The local file of a copy.
struct LocalFile {
  private let path: String
  private let descriptor: FileDescriptor
  /// It is a regular file, in which unwritten ranges are holes.
  private let hasHoles: Bool

  init(readingFrom path: String) throws {
    self.path = path
    hasHoles = false
    do { descriptor = try FileDescriptor.open(FilePath(path), .readOnly) } catch {
      throw DriverError.badRequest("the file \(path) cannot be opened: \(error)")
    }
  }

  init(writingTo path: String) throws {
    self.path = path
    do {
      descriptor = try FileDescriptor.open(
        FilePath(path), .writeOnly, options: [.create, .truncate], permissions: [.ownerReadWrite, .groupRead, .otherRead])
    } catch { throw DriverError.badRequest("the file \(path) cannot be created: \(error)") }
    var info = stat()
    hasHoles = unsafe fstat(descriptor.rawValue, &info) == 0 && info.st_mode & S_IFMT == S_IFREG
  }

  /// The size in bytes. A file without a size, such as a pipe, cannot be copied.
  var size: UInt64 {
    get throws {
      do {
        let end = try descriptor.seek(offset: 0, from: .end)
        try descriptor.seek(offset: 0, from: .start)
        return UInt64(end)
      } catch { throw DriverError.badRequest("the size of \(path) is unknown (\(error)): name a file or a block device") }
    }
  }

  /// Up to `count` bytes, fewer only at the end.
  func read(_ count: Int) throws(DriverError) -> [UInt8] {
    do {
      return try unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
        filled = 0
        while filled < count {
          let part = unsafe UnsafeMutableRawBufferPointer(rebasing: UnsafeMutableRawBufferPointer(buffer)[filled...])
          let read = unsafe try descriptor.read(into: part)
          guard read > 0 else { break }
          filled += read
        }
      }
    } catch { throw .badRequest("the file \(path) cannot be read: \(error)") }
  }

  /// Bytes of a block that becomes a hole if it contains only zeroes.
  private static let block: UInt64 = 4096

  /// The next bytes. In a regular file whole blocks of zeroes stay holes.
  ///
  /// - Parameter offset: where they belong in the file: the end of what was written before.
  func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws(DriverError) {
    do {
      guard hasHoles else {
        try descriptor.writeAll(bytes)
        return
      }
      var (place, rest) = (offset, bytes)
      while !rest.isEmpty {
        // Up to the start of the next block, then as many blocks as are all zeroes or all data.
        var part = rest.prefix(Int(Self.block - place % Self.block))
        let isZero = part.allSatisfy { $0 == 0 }
        while part.endIndex < rest.endIndex {
          let next = rest[part.endIndex...].prefix(Int(Self.block))
          guard next.allSatisfy({ $0 == 0 }) == isZero else { break }
          part = rest[part.startIndex..<next.endIndex]
        }
        if !isZero { try descriptor.writeAll(toAbsoluteOffset: Int64(place), part) }
        place += UInt64(part.count)
        rest = rest[part.endIndex...]
      }
    } catch { throw .badRequest("the file \(path) cannot be written: \(error)") }
  }

  /// Sets the file's size after the last bytes, because the file may end in a hole.
  ///
  /// - Parameter size: bytes that were written, zeroes included.
  func finish(size: UInt64) throws(DriverError) {
    guard hasHoles else { return }
    do { try descriptor.resize(to: Int64(size)) } catch { throw .badRequest("the file \(path) cannot be written: \(error)") }
  }
}
