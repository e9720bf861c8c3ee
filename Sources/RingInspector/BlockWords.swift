/// The few parts of virtio-blk (virtio 5.2.6) that make a chain readable. It shares no code with the device, whose view of a
/// request it is there to check.

/// A chain understood as a block request.
public struct BlockWords: Equatable, Sendable {
  public let type: UInt32
  public let sector: UInt64
  /// Bytes between header and status.
  public let length: UInt64

  /// - Returns: `nil` when the chain has no whole header.
  public init?(_ chain: ChainPicture) {
    guard chain.header.count == 16 else { return nil }
    type = chain.header[...].word(at: 0)
    sector = chain.header[...].word(at: 8)
    length = chain.readableBytes - 16 + max(chain.writableBytes, 1) - 1
  }

  /// The specification's name, or the number.
  public var name: String { Self.names[type] ?? "type \(type)" }

  private static let names: [UInt32: String] = [
    0: "IN", 1: "OUT", 2: "SCSI_CMD", 3: "SCSI_CMD_OUT", 4: "FLUSH", 5: "FLUSH_OUT", 8: "GET_ID", 10: "GET_LIFETIME",
    11: "DISCARD", 13: "WRITE_ZEROES", 14: "SECURE_ERASE", 15: "ZONE_APPEND", 16: "ZONE_REPORT", 18: "ZONE_OPEN",
    20: "ZONE_CLOSE", 22: "ZONE_FINISH", 24: "ZONE_RESET", 26: "ZONE_RESET_ALL",
  ]

  /// Status bytes above this have no meaning (virtio 5.2.6).
  static let highestStatus: UInt8 = 6

  /// The name of a status byte.
  public static func status(_ value: UInt8) -> String {
    switch value {
    case 0: "OK"
    case 1: "IOERR"
    case 2: "UNSUPP"
    case 3: "ZONE_INVALID_CMD"
    case 4: "ZONE_UNALIGNED_WP"
    case 5: "ZONE_OPEN_RESOURCE"
    case 6: "ZONE_ACTIVE_RESOURCE"
    default: "0x" + String(value, radix: 16)
    }
  }

  /// One line: what is requested.
  public var summary: String {
    switch type {
    case 0, 1: "\(name)  sector \(sector), \(length) bytes"
    case 4, 5: name
    default: "\(name)  \(length) bytes"
    }
  }

  /// Names of feature bits that only a block device has (virtio 5.2.3).
  public static let featureNames: [(bit: Int, name: String)] = [
    (0, "BARRIER"), (1, "SIZE_MAX"), (2, "SEG_MAX"), (4, "GEOMETRY"), (5, "RO"), (6, "BLK_SIZE"), (7, "SCSI"),
    (9, "FLUSH"), (10, "TOPOLOGY"), (11, "CONFIG_WCE"), (12, "MQ"), (13, "DISCARD"), (14, "WRITE_ZEROES"),
    (15, "LIFETIME"), (16, "SECURE_ERASE"), (17, "ZONED"),
  ]
}
