/// A log of writes in the format of the kernel's dm-log-writes, from that target or from `serve --record`.
internal import Foundation

struct WriteLog {
  /// One action, in the order of the log.
  struct Entry {
    /// Bytes of the disk.
    var offset: UInt64
    var length: UInt64
    /// Everything before it is stable.
    var isFlush: Bool
    /// It is stable itself.
    var isStable: Bool
    /// The range reads as zeroes; there is no data.
    var isDiscard: Bool
    /// Where its data is in the log.
    var data: UInt64
  }

  private static let magic: UInt64 = 0x6a_7366_7768_7372
  /// Entries that a log may have: more would not fit into memory.
  private static let largest: UInt64 = 10_000_000
  private let handle: FileHandle
  private(set) var entries: [Entry] = []

  /// - Parameters:
  ///   - size: of the disk, bytes; no entry goes past it.
  init(path: String, size: UInt64) throws(CrashCheckError) {
    guard let handle = FileHandle(forReadingAtPath: path) else { throw .badLog(path: path, "it cannot be opened") }
    self.handle = handle
    let head = Self.words(handle, at: 0, 4)
    guard head.count == 4, head[0] == Self.magic, head[1] == 1 else {
      throw .badLog(path: path, "it does not begin as a log of dm-log-writes, version 1")
    }
    let unit = head[3] & 0xffff_ffff
    guard (512...4096).contains(unit), unit & (unit - 1) == 0 else {
      throw .badLog(path: path, "its sectors of \(unit) bytes are not possible")
    }
    guard head[2] <= Self.largest, let end = try? handle.seekToEnd() else {
      throw .badLog(path: path, "it has \(head[2]) entries, and \(Self.largest) are possible")
    }
    var place = unit
    for number in 0..<head[2] {
      let words = Self.words(handle, at: place, 4)
      guard words.count == 4, words[0] <= size / unit, words[1] <= size / unit - words[0] else {
        throw .badLog(path: path, "entry \(number) is not there, or goes past the end of the disk")
      }
      let isDiscard = words[2] & 4 != 0
      // A flush from the kernel may carry data, which is written after the flush.
      if words[2] & 1 != 0 {
        entries.append(Entry(offset: 0, length: 0, isFlush: true, isStable: false, isDiscard: false, data: 0))
      }
      if words[1] > 0, words[2] & 8 == 0 {
        entries.append(
          Entry(
            offset: words[0] * unit, length: words[1] * unit, isFlush: false, isStable: words[2] & 2 != 0,
            isDiscard: isDiscard, data: place + unit))
      }
      place += unit
      if !isDiscard { place += words[1] * unit }
      guard place <= end else { throw .badLog(path: path, "entry \(number) is cut off") }
    }
  }

  /// - Returns: fewer words where the file ends.
  private static func words(_ handle: FileHandle, at offset: UInt64, _ count: Int) -> [UInt64] {
    guard (try? handle.seek(toOffset: offset)) != nil, let data = try? handle.read(upToCount: count * 8),
      data.count == count * 8
    else { return [] }
    let bytes = Array(data)
    return (0..<count).map { word in bytes[word * 8..<word * 8 + 8].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
  }

  /// What an entry writes. - Parameter range: bytes of it.
  func bytes(_ entry: Entry, _ range: Range<UInt64>) throws -> Data {
    guard !entry.isDiscard else { return Data(count: range.count) }
    try handle.seek(toOffset: entry.data + range.lowerBound)
    return try handle.read(upToCount: range.count) ?? Data()
  }
}
