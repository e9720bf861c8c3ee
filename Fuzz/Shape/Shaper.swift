/// Input from the fuzzer's bytes: each byte answers a question, and the next question depends on the earlier answers.

/// Reads choices from a string of bytes. Zero, and the end of the bytes, are the ordinary answer to every question, so an empty
/// input has no mistakes, and each mistake is a choice.
@safe
struct Shaper {
  private let base: UnsafePointer<UInt8>
  private let count: Int
  private var index = 0

  /// - Parameter base: `count` bytes that remain valid while this is used.
  init(_ base: UnsafePointer<UInt8>, _ count: Int) {
    unsafe self.base = base
    self.count = count
  }

  /// Nothing is left to read: from here on, every answer is the ordinary one.
  var isOver: Bool { index >= count }

  mutating func byte() -> UInt8 {
    guard index < count else { return 0 }
    index += 1
    return unsafe base[index - 1]
  }

  mutating func word16() -> UInt16 { UInt16(byte()) | UInt16(byte()) << 8 }
  mutating func word32() -> UInt32 { UInt32(word16()) | UInt32(word16()) << 16 }
  mutating func word64() -> UInt64 { UInt64(word32()) | UInt64(word32()) << 32 }

  /// One of the numbers 0 … count − 1; 0 is the ordinary one. - Parameter count: 1 … 256.
  mutating func choice(_ count: Int) -> Int { Int(byte()) % count }

  mutating func pick<Value>(_ values: [Value]) -> Value { values[choice(values.count)] }

  /// True for one byte value in 16, and never by default.
  mutating func mistake() -> Bool { byte() >= 0xf0 }

  mutating func flag() -> Bool { byte() & 1 == 1 }

  /// A number that is likely to cause trouble.
  mutating func oddNumber() -> UInt64 {
    switch choice(8) {
    case 0: UInt64(byte())
    case 1: UInt64(word16())
    case 2: UInt64(word32())
    case 3: word64()
    case 4: 1 << UInt64(byte() & 63)
    case 5: (1 << UInt64(byte() & 63)) &- 1
    case 6: UInt64.max &- UInt64(byte())
    default: UInt64(Int64.max) &+ UInt64(byte())
    }
  }

  /// Up to `limit` bytes; the first answer is how many. - Parameter limit: 0 … 65535.
  mutating func bytes(upTo limit: Int) -> [UInt8] {
    let wanted = min(limit, Int(limit > 255 ? word16() : UInt16(byte())))
    return (0..<wanted).map { _ in byte() }
  }

  /// The remaining bytes, up to `limit`.
  mutating func rest(upTo limit: Int = .max) -> [UInt8] {
    var bytes: [UInt8] = []
    while !isOver, bytes.count < limit { bytes.append(byte()) }
    return bytes
  }
}
