/// What a driver wrote to the configuration space, beside the in-flight records: a device that comes back after a crash would otherwise
/// have its defaults again, and no front-end repeats a driver's choice of the cache mode.

/// The one byte of the configuration space that a driver may write, with its value.
public struct KeptConfiguration: Hashable, Sendable {
  /// In the configuration space, bytes.
  public var offset: UInt8
  /// What the driver wrote there.
  public var value: UInt8

  /// The parameters are the properties of the same names.
  public init(offset: UInt8, value: UInt8) {
    self.offset = offset
    self.value = value
  }
}

/// It is one word behind the last region, in the size that a front-end is told. Other back-ends find their regions from the number and
/// size of queues, and ignore what lies behind them.
///
/// One store writes it, so that it is whole whenever a device ends. Whoever can write to it could as well write to the regions.
extension InflightMemory {
  /// Bytes; of a cache line.
  static let keepingBytes: UInt64 = 64
  /// "vmmblk", in the bits above offset and value.
  private static let mark: UInt64 = 0x766d_6d62_6c6b

  /// What was kept; `nil` when nothing was, and in memory of other back-ends or on a
  /// file system that may not answer.
  public var keptConfiguration: KeptConfiguration? {
    guard let word = kept?.loadRelaxed(), word >> 16 == Self.mark else { return nil }
    return KeptConfiguration(offset: UInt8(truncatingIfNeeded: word >> 8), value: UInt8(truncatingIfNeeded: word))
  }

  /// Keeps this; where there is no room for it, nothing happens. `nil`: a driver that begins.
  public func keep(_ configuration: KeptConfiguration?) {
    kept?.storeRelease(configuration.map { Self.mark << 16 | UInt64($0.offset) << 8 | UInt64($0.value) } ?? 0)
  }
}
