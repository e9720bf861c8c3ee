/// One descriptor, as a private copy and as it is in memory.

/// A descriptor of either kind of ring (virtio 2.6.5, 2.7.13). Both have the same fields in 16 bytes, in a different order.
public struct RawDescriptor: Hashable, Sendable {
  public var address: UInt64
  public var length: UInt32
  public var flags: Flags
  /// Split: the next descriptor, if the flags say that there is one. Packed: the buffer's ID.
  public var next: UInt16

  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    public static let next = Flags(rawValue: 1)
    /// The device writes; without it, the device reads.
    public static let write = Flags(rawValue: 2)
    public static let indirect = Flags(rawValue: 4)
    /// For packed rings only: the meaning of these two depends on the lap (virtio 2.7.1).
    public static let available = Flags(rawValue: 0x0080)
    public static let used = Flags(rawValue: 0x8000)
  }

  public init(address: UInt64, length: UInt32, flags: Flags = [], next: UInt16 = 0) {
    self.address = address
    self.length = length
    self.flags = flags
    self.next = next
  }

  var lowWord: UInt64 { address }

  /// The second half as `format` has it in memory: length, flags, next; or length, ID, flags.
  func highWord(_ format: RingFormat) -> UInt64 {
    switch format {
    case .split: UInt64(length) | UInt64(flags.rawValue) << 32 | UInt64(next) << 48
    case .packed: UInt64(length) | UInt64(next) << 32 | UInt64(flags.rawValue) << 48
    }
  }

  init(lowWord: UInt64, highWord: UInt64, _ format: RingFormat) {
    address = lowWord
    length = UInt32(truncatingIfNeeded: highWord)
    let (third, fourth) = (UInt16(truncatingIfNeeded: highWord >> 32), UInt16(truncatingIfNeeded: highWord >> 48))
    flags = Flags(rawValue: format == .split ? third : fourth)
    next = format == .split ? fourth : third
  }

  /// The 16 bytes in memory.
  func bytes(_ format: RingFormat) -> [UInt8] { lowWord.littleEndianBytes + highWord(format).littleEndianBytes }
}

extension RawDescriptor: CustomStringConvertible {
  public var description: String {
    var words = ["0x" + String(address, radix: 16), "+\(length)"]
    if flags.contains(.write) { words.append("write") }
    if flags.contains(.indirect) { words.append("indirect") }
    if flags.contains(.next) { words.append("next \(next)") }
    let lap = flags.intersection([.available, .used])
    if !lap.isEmpty { words.append("flags 0x\(String(flags.rawValue, radix: 16)) id \(next)") }
    return "(" + words.joined(separator: " ") + ")"
  }
}
