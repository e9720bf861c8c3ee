/// A qcow2 image that is correct unless the input asks for mistakes.
internal import Glibc

@testable internal import Qcow2

/// In memory, of a few dozen clusters: two L2 tables, clusters of all kinds, two snapshots, one of which shares a table with the disk.
struct Qcow2Sample {
  private(set) var bytes: [UInt8]
  let geometry: Qcow2Geometry
  private var size: Int { Int(geometry.clusterSize) }

  // Cluster numbers.
  private let counts: Int
  private let level1: Int
  private let first: Int
  private var level2: Int { first }
  private var other: Int { first + 1 }
  private var data: Int { first + 2 }
  private var preallocated: Int { first + 3 }
  private var packed: Int { first + 4 }
  private var table: Int { first + 5 }
  private var snapshotLevel1: Int { first + 6 }
  private var snapshotLevel2: Int { first + 8 }
  private var snapshotData: Int { first + 9 }
  private static let more = 10

  /// - Parameter backing: the name of a raw file that it can have as its backing file.
  init(_ shaper: inout Shaper, backing: String) {
    let isExtended = shaper.choice(4) == 1
    let bits = UInt32(isExtended ? shaper.pick([14, 15]) : shaper.pick([12, 9, 10, 16]))
    geometry = Qcow2Geometry(clusterBits: bits, isExtended: isExtended)
    let disk = geometry.level2Span + shaper.pick([0, 512, geometry.clusterSize, geometry.level2Span])
    let hasBacking = shaper.flag()
    let layout: Qcow2Layout
    do throws(Qcow2Fault) {
      layout = try Qcow2Layout(
        size: disk, geometry: geometry, backingName: hasBacking ? Array(backing.utf8) : nil,
        backingFormat: hasBacking ? "raw" : nil)
    } catch { fail("a sample cannot be laid out: \(error)") }
    let clusters = Int(layout.fileSize / geometry.clusterSize)
    (counts, level1, first) = (2, clusters - 1, clusters)
    bytes = [UInt8](repeating: 0, count: (clusters + Self.more) << Int(bits))
    for piece in layout.pieces {
      bytes.replaceSubrange(Int(piece.offset)..<Int(piece.offset) + piece.bytes.count, with: piece.bytes)
    }
    fill(disk)
    if !isExtended, shaper.choice(8) == 1 { turnIntoVersion2() } else if shaper.choice(8) == 1 { turnIntoZstd() }
    for _ in 0..<shaper.choice(7) { damage(&shaper) }
  }

  // MARK: The correct image

  private mutating func count(_ cluster: Int, _ value: UInt16) { bytes.put16(value, at: counts * size + cluster * 2) }

  private func place(_ cluster: Int) -> UInt64 { UInt64(cluster) << UInt64(geometry.clusterBits) }

  private mutating func entry(_ table: Int, _ index: Int, _ word: UInt64, _ bitmap: UInt64 = 0) {
    bytes.put64(word, at: table * size + index * geometry.entryBytes)
    if geometry.isExtended { bytes.put64(bitmap, at: table * size + index * geometry.entryBytes + 8) }
  }

  private mutating func fill(_ disk: UInt64) {
    for cluster in first..<first + Self.more { count(cluster, 1) }
    let own = Qcow2Entries.copied
    // The first table is shared with the second snapshot, and so is its data.
    bytes.put64(place(level2), at: level1 * size)
    if geometry.level1Entries(for: disk) > 1 { bytes.put64(own | place(other), at: level1 * size + 8) } else { count(other, 0) }
    entry(level2, 0, place(data), 0x0000_0000_0000_ffff)
    if geometry.isExtended { entry(level2, 1, 0, 0xffff_ffff_0000_0000) } else { entry(level2, 1, 1) }
    entry(level2, 3, place(preallocated) | (geometry.isExtended ? 0 : 1), 0xffff_ffff_0000_0000)
    // As many sectors as a cluster has, not counting the one in which it begins.
    let sectors = max(UInt64(size) / 512, 1) - 1
    let shift = UInt64(62 - (geometry.clusterBits - 8))
    entry(level2, 4, Qcow2Entries.compressed | sectors << shift | place(packed))
    for cluster in [level2, data, preallocated, packed] { count(cluster, 2) }
    for index in 0..<size { bytes[data * size + index] = UInt8(truncatingIfNeeded: index &* 7 + 1) }
    // A raw deflate stream: stored blocks of at most 100 bytes, then one that repeats a byte.
    bytes.replaceSubrange(packed * size..<packed * size + Self.stream.count, with: Self.stream)

    bytes.put32(2, at: 60)
    bytes.put64(place(table), at: 64)
    snapshot(table * size, level1: snapshotLevel1, "own", disk)
    snapshot(table * size + 64, level1: snapshotLevel1 + 1, "shared", disk)
    bytes.put64(own | place(snapshotLevel2), at: snapshotLevel1 * size)
    entry(snapshotLevel2, 2, own | place(snapshotData), 0x0000_0000_ffff_ffff)
    bytes.put64(place(level2), at: (snapshotLevel1 + 1) * size)
  }

  private mutating func snapshot(_ start: Int, level1 cluster: Int, _ name: String, _ disk: UInt64) {
    bytes.put64(place(cluster), at: start)
    bytes.put32(UInt32(geometry.level1Entries(for: disk)), at: start + 8)
    bytes.put16(1, at: start + 12)
    bytes.put16(UInt16(name.utf8.count), at: start + 14)
    bytes.put32(16, at: start + 36)
    bytes.put64(disk, at: start + 48)
    bytes.replaceSubrange(start + 56..<start + 57 + name.utf8.count, with: Array("1".utf8) + Array(name.utf8))
  }

  /// Fixed codes: the byte 0x55, then 258 bytes that repeat it, again and again, for longer than any cluster of a sample.
  private static let stream: [UInt8] = {
    var (bytes, word, bits): ([UInt8], UInt64, UInt64) = ([], 0, 0)
    func put(_ value: UInt64, _ count: UInt64) {
      word |= value << bits
      bits += count
      while bits >= 8 {
        bytes.append(UInt8(truncatingIfNeeded: word))
        word >>= 8
        bits -= 8
      }
    }
    func code(_ value: UInt64, _ count: UInt64) { for bit in (0..<count).reversed() { put(value >> bit & 1, 1) } }
    put(1, 1)
    put(1, 2)
    code(0x30 + 0x55, 8)
    // 65536 bytes are 254 repetitions.
    for _ in 0..<260 {
      code(0b1100_0101, 8)
      code(0, 5)
    }
    code(0, 7)
    put(0, 8)
    return bytes
  }()

  private mutating func turnIntoVersion2() {
    guard bytes.word64(8) == 0 else { return }
    bytes.put32(2, at: 4)
    for index in 72..<min(1024, size) { bytes[index] = 0 }
    entry(level2, 1, 0)
    entry(level2, 3, place(preallocated))
  }

  /// Its compressed cluster is invalid then.
  private mutating func turnIntoZstd() {
    guard bytes.word64(8) == 0 else { return }
    for index in 104..<min(1024, size) { bytes[index] = 0 }
    bytes.put32(112, at: 100)
    bytes[104] = 1
    bytes.put64(bytes.word64(72) | 8, at: 72)
  }

  // MARK: Damage

  /// Fields of four and of eight bytes in the header.
  private static let words: [(offset: Int, isLong: Bool)] = [
    (24, true), (36, false), (40, true), (48, true), (56, false), (60, false), (64, true), (72, true), (80, true), (88, true),
    (96, false), (100, false), (8, true), (16, false), (20, false), (32, false), (4, false), (104, false), (108, false),
    (112, false),
  ]

  private mutating func damage(_ shaper: inout Shaper) {
    guard bytes.count >= 128 else { return }
    switch shaper.choice(8) {
    case 0:
      let index = shaper.pick([level2, other, snapshotLevel2])
      set(index * size + shaper.choice(8) * geometry.entryBytes, word(&shaper))
      if geometry.isExtended { set(index * size + shaper.choice(8) * 16 + 8, shaper.word64()) }
    case 1:
      let word = shaper.pick(Self.words)
      let value = shaper.flag() ? place(shaper.choice(first + Self.more)) : shaper.oddNumber()
      if word.isLong { set(word.offset, value) } else { bytes.put32(UInt32(truncatingIfNeeded: value), at: word.offset) }
    case 2: set(shaper.pick([level1, snapshotLevel1, snapshotLevel1 + 1]) * size + shaper.choice(3) * 8, word(&shaper))
    case 3:
      let start = table * size + shaper.choice(2) * 64
      let field = shaper.pick([0, 8, 12, 14, 32, 36, 40, 48])
      if shaper.flag() { set(start + field, shaper.oddNumber()) } else { put16(start + field, shaper.word16()) }
    case 4: put16(counts * size + shaper.choice(first + Self.more) * 2, shaper.word16())
    case 5: set(size + shaper.choice(4) * 8, shaper.flag() ? place(shaper.choice(first + Self.more)) : shaper.oddNumber())
    case 6:
      let start = packed * size
      for _ in 0..<shaper.choice(8) { put(start + Int(shaper.word16()) % 600, shaper.byte()) }
      // The beginning of a zstd frame, perhaps.
      if shaper.flag() { for (index, byte) in shaper.bytes(upTo: 80).enumerated() { put(start + index, byte) } }
    default:
      switch shaper.choice(4) {
      case 0: put(Int(shaper.word16()) << (shaper.flag() ? 4 : 0), shaper.byte())
      case 1: bytes.removeLast(min(bytes.count, Int(shaper.word16())))
      case 2: for (index, byte) in shaper.bytes(upTo: 64).enumerated() { put(104 + index, byte) }
      default: bytes += [UInt8](repeating: 0, count: shaper.choice(4) * size + shaper.choice(size > 512 ? 256 : 4))
      }
    }
  }

  /// A table entry, or nearly one.
  private func word(_ shaper: inout Shaper) -> UInt64 {
    let flags = shaper.pick([0, Qcow2Entries.copied, Qcow2Entries.compressed, 1, Qcow2Entries.copied | 1, 3 << 62, 1 << 61])
    switch shaper.choice(4) {
    case 0: return flags | place(shaper.choice(first + Self.more + 2))
    case 1: return flags | shaper.oddNumber()
    // Compressed: some sectors from somewhere.
    case 2:
      return Qcow2Entries.compressed | UInt64(shaper.byte()) << UInt64(62 - (geometry.clusterBits - 8))
        | UInt64(shaper.word16()) << 3
    default: return flags
    }
  }

  private mutating func set(_ offset: Int, _ word: UInt64) {
    if offset >= 0, offset + 8 <= bytes.count { bytes.put64(word, at: offset) }
  }

  private mutating func put16(_ offset: Int, _ word: UInt16) {
    if offset >= 0, offset + 2 <= bytes.count { bytes.put16(word, at: offset) }
  }

  private mutating func put(_ offset: Int, _ byte: UInt8) { if bytes.indices.contains(offset) { bytes[offset] = byte } }
}
