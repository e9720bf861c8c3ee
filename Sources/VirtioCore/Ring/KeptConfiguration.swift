/// The driver's write to the configuration space, kept beside the in-flight records: otherwise a device that restarts after a
/// crash would have its defaults again, because no front-end repeats a driver's choice of the cache mode.

/// The only byte of the configuration space that a driver may write, with its value.
public struct KeptConfiguration: Hashable, Sendable {
  /// Its offset in the configuration space, bytes.
  public var offset: UInt8
  /// The value that the driver wrote.
  public var value: UInt8

  /// The parameters are the properties of the same names.
  public init(offset: UInt8, value: UInt8) {
    self.offset = offset
    self.value = value
  }
}

/// It is one word behind the last region, and included in the size that a front-end is told. Other back-ends find their regions
/// from the number and size of queues, and ignore what lies behind them.
///
/// It is written with one store, so that it is consistent whenever a device dies. A process that can write to it could also
/// write to the regions.
extension InflightMemory {
  /// Bytes reserved for it: one cache line.
  static let keepingBytes: UInt64 = 64
  /// "vmmblk", in the bits above offset and value.
  private static let mark: UInt64 = 0x766d_6d62_6c6b

  /// The byte that was kept; `nil` if there is none, in memory made by another back-end, and on a file system that may not
  /// answer.
  public var keptConfiguration: KeptConfiguration? {
    guard let word = kept?.loadRelaxed(), word >> 16 == Self.mark else { return nil }
    return KeptConfiguration(offset: UInt8(truncatingIfNeeded: word >> 8), value: UInt8(truncatingIfNeeded: word))
  }

  /// Keeps this, if there is room for it. `nil`: clears it, for a new driver.
  public func keep(_ configuration: KeptConfiguration?) {
    kept?.storeRelease(configuration.map { Self.mark << 16 | UInt64($0.offset) << 8 | UInt64($0.value) } ?? 0)
  }
}
