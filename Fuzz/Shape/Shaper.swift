/// Input from the fuzzer's bytes: each byte is an answer to a question, and what is asked next depends on the answers before.

/// Reads choices from a string of bytes. Zero, and the end of the bytes, are the ordinary answer to every question, so an input is
/// good where it says nothing, and each mistake in it is a choice.
@safe
struct Shaper {
  private let base: UnsafePointer<UInt8>
  private let count: Int
  private var index = 0

  /// - Parameter base: `count` bytes that stay for as long as this is used.
  init(_ base: UnsafePointer<UInt8>, _ count: Int) {
    unsafe self.base = base
    self.count = count
  }

  /// Nothing is left to read: from now on every answer is the ordinary one.
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

  /// One in about sixteen inputs, and never by default.
  mutating func mistake() -> Bool { byte() >= 0xf0 }

  mutating func flag() -> Bool { byte() & 1 == 1 }

  /// A number that programs have trouble with.
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

  /// Up to `limit` bytes, how many of them being the first answer. - Parameter limit: 0 … 65535.
  mutating func bytes(upTo limit: Int) -> [UInt8] {
    let wanted = min(limit, Int(limit > 255 ? word16() : UInt16(byte())))
    return (0..<wanted).map { _ in byte() }
  }

  /// What is left, up to `limit` bytes.
  mutating func rest(upTo limit: Int = .max) -> [UInt8] {
    var bytes: [UInt8] = []
    while !isOver, bytes.count < limit { bytes.append(byte()) }
    return bytes
  }
}
