/// The payload of IOTLB_MSG ("IOTLB"): one translation, in either direction.
public import VirtioCore

/// A front-end adds and invalidates translations; a back-end asks for those that it misses.
public struct TranslationMessage: Hashable, Sendable {
  /// Bytes that are sent; the structure in C is padded.
  static let size = 32
  /// Bytes that are needed to decode it.
  static let leastSize = 26

  public enum Kind: UInt8, Sendable {
    case miss = 1
    case update
    case invalidate
    /// Sent by a back-end after an access that was not allowed. Not sent here: QEMU only logs it.
    case accessFailed
  }

  /// An address of the driver.
  public var address: UInt64
  /// Bytes.
  public var size: UInt64
  /// The corresponding address in the front-end's process.
  public var userAddress: UInt64
  /// Bit 0: the device may read, bit 1: it may write.
  public var permission: UInt8
  /// A `Kind`.
  public var type: UInt8

  public init(address: UInt64, size: UInt64 = 0, userAddress: UInt64 = 0, permission: UInt8 = 0, type: UInt8) {
    self.address = address
    self.size = size
    self.userAddress = userAddress
    self.permission = permission
    self.type = type
  }

  /// Asks for a missed translation. The front-end decides how large a range around the address it translates.
  public init(_ miss: TranslationMiss) {
    self.init(address: miss.address, permission: miss.access.rawValue, type: Kind.miss.rawValue)
  }

  public init?(decoding bytes: [UInt8]) {
    guard bytes.count >= Self.leastSize else { return nil }
    self.init(
      address: bytes.word64(at: 0), size: bytes.word64(at: 8), userAddress: bytes.word64(at: 16), permission: bytes[24],
      type: bytes[25])
  }

  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append64(address)
    bytes.append64(size)
    bytes.append64(userAddress)
    bytes.append(permission)
    bytes.append(type)
    return bytes + [UInt8](repeating: 0, count: Self.size - bytes.count)
  }
}
