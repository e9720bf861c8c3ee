/// What a driver knows of the block device's wire format (virtio 5.2), written down independently of any device.
public import VirtioCore

/// What a request asks for (virtio 5.2.6).
public struct BlockRequestType: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  public static let read = BlockRequestType(rawValue: 0)
  public static let write = BlockRequestType(rawValue: 1)
  public static let flush = BlockRequestType(rawValue: 4)
  public static let getID = BlockRequestType(rawValue: 8)
  public static let getLifetime = BlockRequestType(rawValue: 10)
  public static let discard = BlockRequestType(rawValue: 11)
  public static let writeZeroes = BlockRequestType(rawValue: 13)
  public static let secureErase = BlockRequestType(rawValue: 14)
  public static let zoneAppend = BlockRequestType(rawValue: 15)
  public static let zoneReport = BlockRequestType(rawValue: 16)
  public static let zoneOpen = BlockRequestType(rawValue: 18)
  public static let zoneClose = BlockRequestType(rawValue: 20)
  public static let zoneFinish = BlockRequestType(rawValue: 22)
  public static let zoneReset = BlockRequestType(rawValue: 24)
  public static let zoneResetAll = BlockRequestType(rawValue: 26)

  public var description: String {
    switch self {
    case .read: "IN"
    case .write: "OUT"
    case .flush: "FLUSH"
    case .getID: "GET_ID"
    case .getLifetime: "GET_LIFETIME"
    case .discard: "DISCARD"
    case .writeZeroes: "WRITE_ZEROES"
    case .secureErase: "SECURE_ERASE"
    case .zoneAppend: "ZONE_APPEND"
    case .zoneReport: "ZONE_REPORT"
    case .zoneOpen: "ZONE_OPEN"
    case .zoneClose: "ZONE_CLOSE"
    case .zoneFinish: "ZONE_FINISH"
    case .zoneReset: "ZONE_RESET"
    case .zoneResetAll: "ZONE_RESET_ALL"
    default: "type \(rawValue)"
    }
  }
}

/// How a request ended (virtio 5.2.6).
public struct BlockStatusCode: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let ok = BlockStatusCode(rawValue: 0)
  public static let ioError = BlockStatusCode(rawValue: 1)
  public static let unsupported = BlockStatusCode(rawValue: 2)
  public static let zoneInvalid = BlockStatusCode(rawValue: 3)
  public static let zoneUnaligned = BlockStatusCode(rawValue: 4)
  public static let zoneOpenResource = BlockStatusCode(rawValue: 5)
  public static let zoneActiveResource = BlockStatusCode(rawValue: 6)
  /// No device answers with this: the driver stores it in the status byte beforehand.
  static let poison = BlockStatusCode(rawValue: 0xf1)

  public var description: String {
    switch self {
    case .ok: "OK"
    case .ioError: "IOERR"
    case .unsupported: "UNSUPP"
    case .zoneInvalid: "ZONE_INVALID_CMD"
    case .zoneUnaligned: "ZONE_UNALIGNED_WP"
    case .zoneOpenResource: "ZONE_OPEN_RESOURCE"
    case .zoneActiveResource: "ZONE_ACTIVE_RESOURCE"
    default: "status \(rawValue)"
    }
  }
}

/// A range for DISCARD, WRITE_ZEROES and SECURE_ERASE: 16 bytes on the wire.
public struct BlockRange: Hashable, Sendable {
  /// 512-byte units.
  public var sector: UInt64
  public var sectors: UInt32
  /// Bit 0: unmap.
  public var flags: UInt32

  public init(sector: UInt64, sectors: UInt32, flags: UInt32 = 0) {
    self.sector = sector
    self.sectors = sectors
    self.flags = flags
  }

  public var bytes: [UInt8] { sector.littleEndianBytes + sectors.littleEndianBytes + flags.littleEndianBytes }
}

/// One request, as bytes in both directions. It can express anything, even nonsense.
public struct BlockRequest: Hashable, Sendable {
  public var type: BlockRequestType
  /// The second word of the header.
  public var reserved: UInt32 = 0
  /// 512-byte units.
  public var sector: UInt64
  /// Readable bytes after the header.
  public var payload: [UInt8]
  /// Writable bytes before the status.
  public var answerBytes: Int

  public init(type: BlockRequestType, sector: UInt64 = 0, payload: [UInt8] = [], answerBytes: Int = 0) {
    self.type = type
    self.sector = sector
    self.payload = payload
    self.answerBytes = answerBytes
  }

  /// The 16 bytes of the header.
  public var header: [UInt8] { type.rawValue.littleEndianBytes + reserved.littleEndianBytes + sector.littleEndianBytes }

  public static func read(sector: UInt64, bytes: Int) -> BlockRequest {
    BlockRequest(type: .read, sector: sector, answerBytes: bytes)
  }
  public static func write(sector: UInt64, _ bytes: [UInt8]) -> BlockRequest {
    BlockRequest(type: .write, sector: sector, payload: bytes)
  }
  public static let flush = BlockRequest(type: .flush)
  public static let identify = BlockRequest(type: .getID, answerBytes: 20)
  public static let lifetime = BlockRequest(type: .getLifetime, answerBytes: 6)
  public static func discard(_ ranges: [BlockRange]) -> BlockRequest {
    BlockRequest(type: .discard, payload: ranges.flatMap(\.bytes))
  }
  public static func writeZeroes(_ ranges: [BlockRange]) -> BlockRequest {
    BlockRequest(type: .writeZeroes, payload: ranges.flatMap(\.bytes))
  }
  public static func secureErase(_ ranges: [BlockRange]) -> BlockRequest {
    BlockRequest(type: .secureErase, payload: ranges.flatMap(\.bytes))
  }
  /// - Parameter zone: the zone's first sector. The answer is where the data went.
  public static func append(zone: UInt64, _ bytes: [UInt8]) -> BlockRequest {
    BlockRequest(type: .zoneAppend, sector: zone, payload: bytes, answerBytes: 8)
  }
  /// - Parameters:
  ///   - sector: any sector of the first zone to report.
  ///   - zones: how many zones to report.
  public static func zoneReport(from sector: UInt64, zones: Int) -> BlockRequest {
    BlockRequest(type: .zoneReport, sector: sector, answerBytes: 64 + 64 * zones)
  }
  /// - Parameter sector: the zone's first; 0 for all of them.
  public static func zone(_ type: BlockRequestType, _ sector: UInt64) -> BlockRequest {
    BlockRequest(type: type, sector: sector)
  }
}

extension BlockRequest: CustomStringConvertible {
  public var description: String {
    var words = ["\(type) sector \(sector)"]
    if !payload.isEmpty { words.append("\(payload.count) bytes out") }
    if answerBytes > 0 { words.append("\(answerBytes) bytes in") }
    return words.joined(separator: ", ")
  }
}

extension FixedWidthInteger {
  var littleEndianBytes: [UInt8] {
    (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> Self(truncatingIfNeeded: $0 * 8)) }
  }
}

/// The driver's own list of the block device's feature bits (virtio 5.2.3).
public enum BlockFeature {
  public static let sizeMax = FeatureSet(bit: 1)
  public static let segMax = FeatureSet(bit: 2)
  public static let geometry = FeatureSet(bit: 4)
  public static let readOnly = FeatureSet(bit: 5)
  public static let blockSize = FeatureSet(bit: 6)
  public static let flush = FeatureSet(bit: 9)
  public static let topology = FeatureSet(bit: 10)
  public static let configWCE = FeatureSet(bit: 11)
  public static let multiQueue = FeatureSet(bit: 12)
  public static let discard = FeatureSet(bit: 13)
  public static let writeZeroes = FeatureSet(bit: 14)
  public static let lifetime = FeatureSet(bit: 15)
  public static let secureErase = FeatureSet(bit: 16)
  public static let zoned = FeatureSet(bit: 17)

  private static let names: [(bit: Int, name: String)] = [
    (0, "BARRIER"), (1, "SIZE_MAX"), (2, "SEG_MAX"), (4, "GEOMETRY"), (5, "RO"), (6, "BLK_SIZE"), (7, "SCSI"), (9, "FLUSH"),
    (10, "TOPOLOGY"), (11, "CONFIG_WCE"), (12, "MQ"), (13, "DISCARD"), (14, "WRITE_ZEROES"), (15, "LIFETIME"),
    (16, "SECURE_ERASE"), (17, "ZONED"),
  ]

  /// What this driver can work with over a split ring: the set to accept. With RING_PACKED added, the driver accepts packed
  /// rings if they are offered.
  public static let understood: FeatureSet = [
    sizeMax, segMax, geometry, readOnly, blockSize, flush, topology, configWCE, multiQueue, discard, writeZeroes,
    lifetime, secureErase, zoned,
    .indirectDescriptors, .eventIndex, .version1,
  ]

  /// Further features that it can work with, on request.
  public static let onRequest: FeatureSet = [
    .accessPlatform, .packedRing, .inOrder, .orderPlatform, .notificationData, .ringReset,
  ]

  /// The name of a bit as the specification spells it; `nil` for bits without one.
  public static func name(ofBit bit: Int) -> String? {
    (names + FeatureSet.commonNames).first { $0.bit == bit }?.name
  }
}
