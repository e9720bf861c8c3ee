/// The payloads of messages as values. A decoder returns nil for a payload that is too short, ignores the rest of a longer one,
/// and checks nothing else: the session validates the values.
public import VirtioCore

/// A payload of one 64-bit number.
enum NumberPayload {
  static func encode(_ value: UInt64) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append64(value)
    return bytes
  }

  static func decode(_ bytes: [UInt8]) -> UInt64? { bytes.count >= 8 ? bytes.word64(at: 0) : nil }
}

/// "A vring state description": a ring and a number that depends on the request.
public struct VringState: Hashable, Sendable {
  static let size = 8

  public var index: UInt32
  public var number: UInt32

  public init(index: UInt32, number: UInt32) {
    self.index = index
    self.number = number
  }

  public init?(decoding bytes: [UInt8]) {
    guard bytes.count >= Self.size else { return nil }
    self.init(index: bytes.word32(at: 0), number: bytes.word32(at: 4))
  }

  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append32(index)
    bytes.append32(number)
    return bytes
  }
}

/// The number sent with a kick, call or err descriptor: ring index in bits 0–7, bit 8 set if there is no descriptor.
public struct VringDescriptorWord: Hashable, Sendable {
  public var index: UInt8
  public var hasDescriptor: Bool

  public init(index: UInt8, hasDescriptor: Bool) {
    self.index = index
    self.hasDescriptor = hasDescriptor
  }

  public init?(decoding bytes: [UInt8]) {
    guard let word = NumberPayload.decode(bytes) else { return nil }
    self.init(index: UInt8(truncatingIfNeeded: word), hasDescriptor: word & 0x100 == 0)
  }

  public var bytes: [UInt8] { NumberPayload.encode(UInt64(index) | (hasDescriptor ? 0 : 0x100)) }
}

/// "A vring address description": where the parts of a ring are, as addresses of the front-end's own process.
public struct VringAddress: Hashable, Sendable {
  static let size = 40

  public var index: UInt32
  /// Bit 0: writes to the used ring are to be logged.
  public var flags: UInt32
  public var descriptorTable: UInt64
  public var usedRing: UInt64
  public var availableRing: UInt64
  public var log: UInt64

  public init(
    index: UInt32, flags: UInt32 = 0, descriptorTable: UInt64, usedRing: UInt64, availableRing: UInt64, log: UInt64 = 0
  ) {
    self.index = index
    self.flags = flags
    self.descriptorTable = descriptorTable
    self.usedRing = usedRing
    self.availableRing = availableRing
    self.log = log
  }

  public init?(decoding bytes: [UInt8]) {
    guard bytes.count >= Self.size else { return nil }
    self.init(
      index: bytes.word32(at: 0), flags: bytes.word32(at: 4), descriptorTable: bytes.word64(at: 8),
      usedRing: bytes.word64(at: 16), availableRing: bytes.word64(at: 24), log: bytes.word64(at: 32))
  }

  /// Writes to the used ring are to be logged, from `log` on.
  public var logsUsedRing: Bool { flags & 1 != 0 }

  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append32(index)
    bytes.append32(flags)
    for word in [descriptorTable, usedRing, availableRing, log] { bytes.append64(word) }
    return bytes
  }
}

/// "Log description": an area of the file that is sent with it.
public struct SharedArea: Hashable, Sendable {
  static let size = 16

  /// Bytes.
  public var size: UInt64
  /// Where it begins in the file, bytes.
  public var offset: UInt64

  public init(size: UInt64, offset: UInt64) {
    self.size = size
    self.offset = offset
  }

  public init?(decoding bytes: [UInt8]) {
    guard bytes.count >= Self.size else { return nil }
    self.init(size: bytes.word64(at: 0), offset: bytes.word64(at: 8))
  }

  public var bytes: [UInt8] { NumberPayload.encode(size) + NumberPayload.encode(offset) }
}

/// "Memory region description": one range of guest memory, in three address spaces.
public struct MemoryRegion: Hashable, Sendable {
  static let size = 32

  public var guestAddress: GuestAddress
  /// Bytes.
  public var size: UInt64
  /// Its address in the front-end's own process; ring addresses are given in this space.
  public var userAddress: UInt64
  /// Its offset in the file of its descriptor, bytes.
  public var offset: UInt64

  public init(guestAddress: GuestAddress, size: UInt64, userAddress: UInt64, offset: UInt64 = 0) {
    self.guestAddress = guestAddress
    self.size = size
    self.userAddress = userAddress
    self.offset = offset
  }

  /// - Parameter bytes: the caller has checked that `Self.size` of them are there from `start` on.
  fileprivate init(decoding bytes: [UInt8], at start: Int) {
    self.init(
      guestAddress: GuestAddress(bytes.word64(at: start)), size: bytes.word64(at: start + 8),
      userAddress: bytes.word64(at: start + 16), offset: bytes.word64(at: start + 24))
  }

  fileprivate func append(to bytes: inout [UInt8]) {
    for word in [guestAddress.rawValue, size, userAddress, offset] { bytes.append64(word) }
  }

  /// The payload of ADD_MEM_REG and REM_MEM_REG: padding and one region.
  public var singleBytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append64(0)
    append(to: &bytes)
    return bytes
  }

  public init?(decodingSingle bytes: [UInt8]) {
    guard bytes.count >= 8 + Self.size else { return nil }
    self.init(decoding: bytes, at: 8)
  }

  /// The payload of SET_MEM_TABLE.
  public static func encode(table: [MemoryRegion]) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append32(UInt32(table.count))
    bytes.append32(0)
    for region in table { region.append(to: &bytes) }
    return bytes
  }

  public static func decode(table bytes: [UInt8]) -> [MemoryRegion]? {
    guard bytes.count >= 8, let count = Int(exactly: bytes.word32(at: 0)), count <= Message.maximumDescriptors,
      bytes.count >= 8 + count * size
    else { return nil }
    return (0..<count).map { MemoryRegion(decoding: bytes, at: 8 + $0 * size) }
  }
}

/// "Inflight description": where the in-flight records are in a file.
public struct InflightDescription: Hashable, Sendable {
  /// Bytes of its fields; no peer may send fewer.
  static let size = 20
  /// Bytes on the wire: the size of the structure in C, which other peers require.
  static let wireSize = 24

  /// Bytes of all records; 0 in a reply: not available.
  public var byteCount: UInt64
  /// Their offset in the file, bytes.
  public var offset: UInt64
  public var queueCount: UInt16
  /// Entries of the largest ring.
  public var queueSize: UInt16

  public init(byteCount: UInt64 = 0, offset: UInt64 = 0, queueCount: UInt16, queueSize: UInt16) {
    self.byteCount = byteCount
    self.offset = offset
    self.queueCount = queueCount
    self.queueSize = queueSize
  }

  public init?(decoding bytes: [UInt8]) {
    guard bytes.count >= Self.size else { return nil }
    let counts = bytes.word32(at: 16)
    self.init(
      byteCount: bytes.word64(at: 0), offset: bytes.word64(at: 8), queueCount: UInt16(truncatingIfNeeded: counts),
      queueSize: UInt16(truncatingIfNeeded: counts >> 16))
  }

  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append64(byteCount)
    bytes.append64(offset)
    bytes.append32(UInt32(queueCount) | UInt32(queueSize) << 16)
    bytes.append32(0)
    return bytes
  }
}

/// "Virtio device config space": a piece of the configuration space.
public struct ConfigurationPayload: Hashable, Sendable {
  /// Bytes before the contents.
  static let headerSize = 12
  /// The largest piece that front-ends request, bytes.
  static let maximumSize: UInt32 = 256

  public var offset: UInt32
  /// How many bytes are valid, at most `contents.count`.
  public var size: UInt32
  public var flags: UInt32
  /// The bytes after the header, which may be more than `size`: one front-end always sends its whole structure.
  public var contents: [UInt8]

  public init(offset: UInt32, flags: UInt32 = 0, contents: [UInt8]) {
    self.offset = offset
    self.size = UInt32(contents.count)
    self.flags = flags
    self.contents = contents
  }

  public init?(decoding bytes: [UInt8]) {
    guard bytes.count >= Self.headerSize else { return nil }
    let size = bytes.word32(at: 4)
    guard UInt64(size) <= UInt64(bytes.count - Self.headerSize) else { return nil }
    self.offset = bytes.word32(at: 0)
    self.size = size
    self.flags = bytes.word32(at: 8)
    self.contents = Array(bytes[Self.headerSize...])
  }

  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append32(offset)
    bytes.append32(size)
    bytes.append32(flags)
    return bytes + contents
  }
}
