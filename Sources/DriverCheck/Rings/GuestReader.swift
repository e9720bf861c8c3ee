/// Reads guest memory: each byte is read once, into a copy, and what is outside of memory reads as `nil`.
internal import VirtioCore

struct GuestReader {
  let memory: GuestMemory
  private var view: GuestMemoryView

  init(_ memory: GuestMemory) {
    self.memory = memory
    view = memory.view()
  }

  /// - Parameter count: bytes; bounded by the caller.
  mutating func bytes(_ address: UInt64, _ count: Int) -> [UInt8]? {
    guard let pieces = try? view.pieces(GuestAddress(address), length: UInt32(clamping: count)) else { return nil }
    var result: [UInt8] = []
    result.reserveCapacity(count)
    for piece in pieces {
      for offset in 0..<piece.count { result.append(unsafe SharedCell<UInt8>(piece.base + offset).loadRelaxed()) }
    }
    return result
  }

  mutating func contains(_ address: UInt64, _ count: UInt32) -> Bool {
    count == 0 || (try? view.pieces(GuestAddress(address), length: count)) != nil
  }

  /// An aligned word of a ring. Acquire: what the driver stored before it is read after it.
  mutating func word(_ address: UInt64) -> UInt16? {
    guard address % 2 == 0, let piece = view.contiguous(GuestAddress(address), count: 2) else { return nil }
    guard unsafe UInt(bitPattern: piece.base) % 2 == 0 else { return nil }
    return unsafe UInt16(littleEndian: SharedCell<UInt16>(piece.base).loadAcquire())
  }
}

extension [UInt8] {
  /// - Precondition: the bytes are there.
  func number<Value: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as type: Value.Type = Value.self) -> Value {
    (0..<Value.bitWidth / 8).reduce(0) { $0 | Value(self[offset + $1]) << Value(8 * $1) }
  }
}

/// A descriptor of either format, as in memory.
struct SeenDescriptor: Hashable {
  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4

  var address: UInt64
  var length: UInt32
  var flags: UInt16
  /// The next descriptor; in a packed ring, the buffer ID.
  var link: UInt16
  var bytes: [UInt8]

  /// - Parameter bytes: 16.
  init(_ bytes: [UInt8], isPacked: Bool) {
    address = bytes.number(0)
    length = bytes.number(8)
    flags = bytes.number(isPacked ? 14 : 12)
    link = bytes.number(isPacked ? 12 : 14)
    self.bytes = bytes
  }

  func has(_ flag: UInt16) -> Bool { flags & flag != 0 }
}

/// A chain that belongs to the device.
struct SeenChain {
  struct Piece {
    var address: UInt64
    var length: UInt32
  }

  struct Entry {
    var address: UInt64
    /// For people.
    var place: String
    /// Of a packed ring: which slot it is, counted since the watch began; `nil`: it is in an indirect table, or in a split ring.
    var ordinal: UInt64?
    var bytes: [UInt8]
  }

  var name: UInt16 = 0
  /// For display: where it became available.
  var place: String
  var readable: [Piece] = []
  var writable: [Piece] = []
  var entries: [Entry] = []
  /// Slots of the ring that it takes.
  var slots = 0
  /// The request's header when the chain was first seen; empty: there is none.
  var header: [UInt8] = []
  /// The chain could not be followed to the end.
  var isBroken = false

  var readableBytes: UInt64 { readable.reduce(0) { $0 + UInt64($1.length) } }
  var writableBytes: UInt64 { writable.reduce(0) { $0 + UInt64($1.length) } }
}
