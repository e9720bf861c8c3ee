/// The MSI-X table (PCI Local Bus 3.0, 6.8.2): where messages go, and which are masked.

/// Four words for each vector: message address, its upper half, message data, vector control.
struct MSIXTable: Hashable, Sendable {
  private(set) var words: [UInt32]
  var vectors: Int { words.count / 4 }

  /// Initially every vector is masked.
  init(vectors: Int) {
    words = (0..<vectors * 4).map { $0 % 4 == 3 ? 1 : 0 }
  }

  /// PCI allows only aligned accesses of 4 and 8 bytes; others read as zero, and their writes have no effect.
  func read(offset: UInt32, width: Int) -> UInt64 {
    guard let index = index(offset, width) else { return 0 }
    return UInt64(words[index]) | (width == 8 ? UInt64(words[index + 1]) << 32 : 0)
  }

  mutating func write(offset: UInt32, width: Int, value: UInt64) {
    guard let index = index(offset, width) else { return }
    set(index, UInt32(truncatingIfNeeded: value))
    if width == 8 { set(index + 1, UInt32(truncatingIfNeeded: value >> 32)) }
  }

  /// Overwrites the table with a record, as far as both reach.
  mutating func replace(with record: [UInt32]) {
    for index in words.indices where record.indices.contains(index) { set(index, record[index]) }
  }

  private func index(_ offset: UInt32, _ width: Int) -> Int? {
    guard width == 4 || width == 8, Int(offset) % width == 0, Int(offset) + width <= words.count * 4 else { return nil }
    return Int(offset) / 4
  }

  /// Reserved bits stay zero: in the control word all except the mask, in the address the two lowest.
  private mutating func set(_ index: Int, _ value: UInt32) {
    words[index] = index % 4 == 3 ? value & 1 : index % 4 == 0 ? value & ~3 : value
  }

  func isMasked(_ vector: Int) -> Bool { words[vector * 4 + 3] & 1 != 0 }

  func message(_ vector: Int) -> MSIMessage {
    MSIMessage(
      address: UInt64(words[vector * 4]) | UInt64(words[vector * 4 + 1]) << 32, data: words[vector * 4 + 2])
  }
}
