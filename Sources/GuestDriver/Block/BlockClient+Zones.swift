/// Zones as a program wants them (virtio 5.2.6).
internal import VirtioCore

/// A zone as the device reports it.
public struct ReportedZone: Hashable, Sendable {
  /// 512-byte sectors.
  public var capacity: UInt64
  public var start: UInt64
  /// Where the next write goes; meaningless for zones without a write pointer.
  public var pointer: UInt64
  /// 1: conventional, 2: sequential write required, 3: sequential write preferred.
  public var type: UInt8
  public var state: State

  public init(capacity: UInt64, start: UInt64, pointer: UInt64, type: UInt8, state: State) {
    (self.capacity, self.start, self.pointer, self.type, self.state) = (capacity, start, pointer, type, state)
  }

  public struct State: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let notWritePointer = State(rawValue: 0)
    public static let empty = State(rawValue: 1)
    public static let implicitlyOpen = State(rawValue: 2)
    public static let explicitlyOpen = State(rawValue: 3)
    public static let closed = State(rawValue: 4)
    public static let readOnly = State(rawValue: 13)
    public static let full = State(rawValue: 14)
    public static let offline = State(rawValue: 15)

    public var description: String {
      switch self {
      case .notWritePointer: "NOT_WP"
      case .empty: "EMPTY"
      case .implicitlyOpen: "IOPEN"
      case .explicitlyOpen: "EOPEN"
      case .closed: "CLOSED"
      case .readOnly: "RDONLY"
      case .full: "FULL"
      case .offline: "OFFLINE"
      default: "state \(rawValue)"
      }
    }
  }

  /// The zones of a report's answer.
  ///
  /// - Throws: `requestFailed` if the answer is not a valid report.
  public static func list(_ answer: [UInt8]) throws(DriverError) -> [ReportedZone] {
    func word(_ offset: Int) -> UInt64 {
      var word: UInt64 = 0
      for byte in answer[offset..<offset + 8].reversed() { word = word << 8 | UInt64(byte) }
      return word
    }
    guard answer.count >= 64, let count = Int(exactly: word(0)), count <= (answer.count - 64) / 64 else {
      throw .requestFailed("ZONE_REPORT: the answer counts more zones than it contains")
    }
    return (0..<count).map { number in
      let place = 64 + 64 * number
      return ReportedZone(
        capacity: word(place), start: word(place + 8), pointer: word(place + 16), type: answer[place + 24],
        state: State(rawValue: answer[place + 25]))
    }
  }
}

extension BlockClient {
  /// The zone limits of the disk. - Throws: `badRequest` if it has no zones.
  public func zoning() throws(DriverError) -> BlockConfig.Zoned {
    guard session.features.contains(BlockFeature.zoned), let zoned = config.zoned, zoned.model != 0, zoned.zoneSectors > 0
    else {
      throw .badRequest("the disk has no zones")
    }
    return zoned
  }

  public func zoneCount() throws(DriverError) -> Int {
    let size = UInt64(try zoning().zoneSectors)
    guard config.capacity > 0, let count = Int(exactly: (config.capacity - 1) / size + 1), count <= Self.mostZones else {
      throw .badRequest("\(config.capacity) sectors in zones of \(size) are not a valid number of zones: the device is wrong")
    }
    return count
  }

  /// The most zones that are enumerated.
  private static var mostZones: Int { 1 << 24 }

  /// The first sector of a zone.
  public func zoneStart(_ zone: Int) throws(DriverError) -> UInt64 {
    guard zone >= 0, zone < (try zoneCount()) else { throw .badRequest("there is no zone \(zone)") }
    return UInt64(zone) * UInt64(try zoning().zoneSectors)
  }

  /// The device's report of all its zones, fetched in parts.
  public func zones() throws(DriverError) -> [ReportedZone] {
    let count = try zoneCount()
    var zones: [ReportedZone] = []
    while zones.count < count {
      let some = try ReportedZone.list(
        try ask(.zoneReport(from: try zoneStart(zones.count), zones: min(256, count - zones.count))).answer)
      guard !some.isEmpty else { throw .requestFailed("ZONE_REPORT returns no zone from \(zones.count) on") }
      zones += some
    }
    return zones
  }

  /// One zone.
  public func zone(_ zone: Int) throws(DriverError) -> ReportedZone {
    guard let found = try ReportedZone.list(try ask(.zoneReport(from: try zoneStart(zone), zones: 1)).answer).first else {
      throw .requestFailed("ZONE_REPORT returns nothing about zone \(zone)")
    }
    return found
  }

  /// ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH or ZONE_RESET.
  public func changeZone(_ type: BlockRequestType, _ zone: Int) throws(DriverError) {
    _ = try ask(.zone(type, try zoneStart(zone)))
  }

  public func resetAllZones() throws(DriverError) {
    _ = try zoning()
    _ = try ask(.zone(.zoneResetAll, 0))
  }

  /// Appends to a zone. - Returns: the sector where it went.
  @discardableResult
  public func append(_ bytes: [UInt8], toZone zone: Int) throws(DriverError) -> UInt64 {
    Self.appendedSector(try ask(.append(zone: try zoneStart(zone), bytes)))
  }

  /// The sector that an append reports: the first eight bytes of its answer, however long that is.
  public static func appendedSector(_ outcome: BlockOutcome) -> UInt64 {
    var sector: UInt64 = 0
    for byte in outcome.answer.prefix(8).reversed() { sector = sector << 8 | UInt64(byte) }
    return sector
  }

  private func ask(_ request: BlockRequest) throws(DriverError) -> BlockOutcome {
    _ = try zoning()
    let outcome = try perform(request)
    guard outcome.status == .ok else { throw .requestFailed("\(request): \(outcome.status)") }
    return outcome
  }
}
