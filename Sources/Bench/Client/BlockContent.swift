/// The contents of a block when contents are checked: its place, its generation, a checksum, and bytes derived from them.

/// Data that is not what was written.
public struct Mismatch: Hashable, Sendable, CustomStringConvertible {
  public enum Kind: Hashable, Sendable {
    /// The block was not written with --verify.
    case unknown
    /// Another block's data.
    case misplaced(from: UInt64)
    /// An older or never written state of this block.
    case stale(found: UInt32, wanted: UInt32)
    /// The checksum or a byte is wrong; the offset is that of the first 8 bytes that are wrong, if known.
    case damaged(at: Int?)
  }

  public var kind: Kind
  /// Bytes from the start of the disk.
  public var offset: UInt64

  public var description: String {
    switch kind {
    case .unknown:
      "the block at offset \(offset) holds nothing that was written with --verify: write it first, with the same --bs and "
        + "--size"
    case .misplaced(let from): "the block at offset \(offset) holds what was written to offset \(from)"
    case .stale(let found, let wanted):
      "the block at offset \(offset) holds write number \(found) to it, not number \(wanted): a write was lost"
    case .damaged(let at?): "the block at offset \(offset) is damaged from its byte \(at) on"
    case .damaged(nil): "the block at offset \(offset) is damaged: its checksum is wrong"
    }
  }
}

/// Makes and checks contents of blocks.
struct BlockContent {
  /// The size of the header in bytes: magic, offset, generation and checksum, seed.
  static let headerSize = 32
  private static let magic: UInt64 = 0x766d_6d62_6c6b_6264

  let verification: Verification
  let seed: UInt64

  /// - Parameters:
  ///   - data: aligned to 8, room for `count` bytes, a multiple of 8 above the header.
  ///   - offset: of the block, bytes.
  ///   - generation: 1 for the first write of the block.
  @inline(never)
  func write(_ data: UnsafeMutableRawPointer, count: Int, offset: UInt64, generation: UInt32) {
    var random = source(offset, generation, seed)
    for place in stride(from: Self.headerSize, to: count, by: 8) {
      unsafe data.storeBytes(of: random.next().littleEndian, toByteOffset: place, as: UInt64.self)
    }
    let sum = verification == .crc32c ? unsafe checksum(data, count) : 0
    unsafe data.storeBytes(of: Self.magic.littleEndian, as: UInt64.self)
    unsafe data.storeBytes(of: offset.littleEndian, toByteOffset: 8, as: UInt64.self)
    unsafe data.storeBytes(of: generation.littleEndian, toByteOffset: 16, as: UInt32.self)
    unsafe data.storeBytes(of: sum.littleEndian, toByteOffset: 20, as: UInt32.self)
    unsafe data.storeBytes(of: seed.littleEndian, toByteOffset: 24, as: UInt64.self)
  }

  /// - Parameter wanted: the expected generation, 0 if unknown.
  @inline(never)
  func check(_ data: UnsafeMutableRawPointer, count: Int, offset: UInt64, wanted: UInt32) -> Mismatch? {
    func word(_ place: Int) -> UInt64 { unsafe UInt64(littleEndian: data.load(fromByteOffset: place, as: UInt64.self)) }
    guard word(0) == Self.magic else {
      return Mismatch(kind: wanted == 0 ? .unknown : .stale(found: 0, wanted: wanted), offset: offset)
    }
    guard word(8) == offset else { return Mismatch(kind: .misplaced(from: word(8)), offset: offset) }
    let generation = UInt32(truncatingIfNeeded: word(16))
    guard wanted == 0 || generation == wanted else {
      return Mismatch(kind: .stale(found: generation, wanted: wanted), offset: offset)
    }
    switch verification {
    case .crc32c:
      let sum = UInt32(truncatingIfNeeded: word(16) >> 32)
      guard unsafe sum == checksum(data, count) else { return Mismatch(kind: .damaged(at: nil), offset: offset) }
    case .pattern:
      var random = source(offset, generation, word(24))
      for place in stride(from: Self.headerSize, to: count, by: 8) where word(place) != random.next() {
        return Mismatch(kind: .damaged(at: place), offset: offset)
      }
    }
    return nil
  }

  private func source(_ offset: UInt64, _ generation: UInt32, _ seed: UInt64) -> FastRandom {
    FastRandom(seed: seed ^ (offset &* 0x9e37_79b9_7f4a_7c15) ^ UInt64(generation) << 40)
  }

  private func checksum(_ data: UnsafeMutableRawPointer, _ count: Int) -> UInt32 {
    unsafe CRC32C.of(UnsafeRawBufferPointer(start: data + Self.headerSize, count: count - Self.headerSize))
  }
}

/// The checksum of iSCSI, ext4 and fio's `crc32c` (polynomial 0x1edc6f41, reflected).
enum CRC32C {
  private static let table: [UInt32] = (0..<256).map { byte in
    (0..<8).reduce(UInt32(byte)) { value, _ in value & 1 == 1 ? value >> 1 ^ 0x82f6_3b78 : value >> 1 }
  }

  static func of(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
    let table = table.span
    var value = ~UInt32(0)
    for index in bytes.indices { unsafe value = table[Int((value ^ UInt32(bytes[index])) & 0xff)] ^ value >> 8 }
    return ~value
  }
}
