/// The model's zones (virtio 5.2.6): each is a few numbers, and every rule is evaluated from scratch.
@testable import Conform

struct ModelZones {
  static let size: UInt64 = 32
  static let capacity: UInt64 = 24
  static let conventional = 4
  static let grain: UInt64 = 4
  static let mostOpen = 2
  static let mostActive = 4

  struct Zone: Equatable {
    /// As in zone reports.
    var state: UInt8
    var pointer: UInt64 = 0
  }

  let sectors: UInt64
  let fault: Fault?
  var mostAppend: UInt64 = 16
  var zones: [Zone]

  init(sectors: UInt64, fault: Fault?, appends: Bool) {
    self.sectors = sectors
    self.fault = fault
    if !appends { mostAppend = 0 }
    zones = (0..<Int(sectors / Self.size)).map { Zone(state: $0 < Self.conventional ? 0 : 1) }
    (zones[zones.count - 3].state, zones[zones.count - 2].state) = (15, 13)
  }

  private var open: Int { zones.count { $0.state == 2 || $0.state == 3 } }
  private var active: Int { zones.count { (2...4).contains($0.state) } }

  private mutating func makeRoom(_ zone: Int) -> UInt8? {
    guard fault != .zonesHaveNoLimit else { return nil }
    if zones[zone].state != 4, active >= Self.mostActive { return fault == .activeIsOpen ? 5 : 6 }
    guard open >= Self.mostOpen else { return nil }
    guard let victim = zones.firstIndex(where: { $0.state == 2 }) else { return 5 }
    if fault != .nothingIsClosed { zones[victim].state = 4 }
    return nil
  }

  private func start(_ sector: UInt64) -> Int? {
    guard sector < sectors else { return nil }
    if fault == .commandsInside { return Int(sector / Self.size) }
    return sector % Self.size == 0 ? Int(sector / Self.size) : nil
  }

  /// - Returns: a status, or the sector where the data goes.
  mutating func write(_ sector: UInt64, _ count: UInt64, isAppend: Bool) -> (UInt8, UInt64) {
    guard count > 0 else { return (isAppend ? 3 : 0, sector) }
    let zone = Int(sector / Self.size)
    guard zone < zones.count else { return (3, 0) }
    if isAppend {
      if mostAppend == 0 { return (fault == .appendsAnyway ? 0 : 2, sector) }
      guard sector % Self.size == 0 || fault == .appendsInside, zones[zone].state != 0 || fault == .conventionalCommands else {
        return (3, 0)
      }
      guard count <= mostAppend || fault == .longAppends else { return (3, 0) }
    }
    if zones[zone].state == 13 || zones[zone].state == 15 { return (fault == .failedZonesWork ? 0 : 3, sector) }
    if zones[zone].state == 0 { return (0, sector) }
    guard zone == Int((sector + count - 1) / Self.size) || isAppend else { return (fault == .bordersAreOpen ? 0 : 3, sector) }
    guard zones[zone].state != 14 else { return (fault == .fullTakesMore ? 0 : 3, sector) }
    let at = UInt64(zone) * Self.size + zones[zone].pointer
    if !isAppend, sector != at { return (fault == .writesAnywhere ? 0 : 4, sector) }
    guard count % Self.grain == 0 || fault == .anyGrain else { return (4, 0) }
    guard zones[zone].pointer + count <= Self.capacity else { return (fault == .overfills ? 0 : 3, at) }
    if zones[zone].state == 1 || zones[zone].state == 4 {
      if let status = makeRoom(zone) {
        if fault == .refusalOpens { zones[zone].state = 2 }
        return (status, 0)
      }
      zones[zone].state = fault == .writesOpenExplicitly ? 3 : 2
    }
    if fault != .pointerStays { zones[zone].pointer += count }
    if zones[zone].pointer == Self.capacity { zones[zone].state = fault == .neverFull ? 2 : 14 }
    return (0, at)
  }

  func read(_ sector: UInt64, _ count: UInt64) -> (status: UInt8, there: UInt64) {
    guard count > 0, sector < sectors else { return (0, count) }
    let zone = Int(sector / Self.size)
    if zones[zone].state == 15 { return (fault == .failedZonesWork ? 0 : 3, count) }
    guard zones[zone].state != 0 else { return (0, count) }
    guard zone == Int((sector + count - 1) / Self.size) else { return (fault == .bordersAreOpen ? 0 : 3, count) }
    if fault == .readsStale { return (0, count) }
    let end = UInt64(zone) * Self.size + zones[zone].pointer
    return (0, min(count, end > sector ? end - sector : 0))
  }

  mutating func command(_ type: UInt32, _ sector: UInt64) -> UInt8 {
    if type == 26 {
      if fault == .resetAllWantsZero, sector != 0 { return 0 }
      if fault == .resetAllForgets { return 0 }
      for zone in zones.indices where (2...4).contains(zones[zone].state) || zones[zone].state == 14 {
        zones[zone] = Zone(state: 1)
      }
      if fault == .resetAllRepairs { for zone in zones.indices where zones[zone].state == 13 { zones[zone] = Zone(state: 1) } }
      return 0
    }
    guard let zone = start(sector) else { return fault == .faultsAreIOErrors ? 1 : 3 }
    let state = zones[zone].state
    if state == 0 { return fault == .conventionalCommands ? 0 : 3 }
    if state == 13 || state == 15 { return fault == .failedZonesWork ? 0 : 3 }
    switch type {
    case 18:
      if state == 14 { return fault == .fullTakesMore ? 0 : 3 }
      if state == 1 || state == 4 { if let status = makeRoom(zone) { return status } }
      if fault != .openDoesNothing { zones[zone].state = 3 }
    case 20:
      guard (2...4).contains(state) else { return 3 }
      zones[zone].state = zones[zone].pointer > 0 || fault == .emptyIsClosed ? 4 : 1
    case 22: zones[zone].state = 14
    default: zones[zone] = Zone(state: 1, pointer: fault == .resetKeepsPointer ? zones[zone].pointer : 0)
    }
    return 0
  }

  func report(_ sector: UInt64, _ room: Int) -> (UInt8, [UInt8]) {
    guard sector < sectors, room >= 64 else { return (fault == .faultsAreIOErrors ? 1 : 3, []) }
    let first = fault == .reportsFromTheFirst ? 0 : Int(sector / Self.size)
    let count = min(zones.count - first, (room - 64) / 64)
    func word(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
    var bytes = word(UInt64(count)) + [UInt8](repeating: 0, count: 56)
    for zone in first..<first + count {
      let start = UInt64(zone) * Self.size
      let state = zones[zone].state
      bytes += word(zone < Self.conventional ? Self.size : Self.capacity) + word(start) + word(start + zones[zone].pointer)
      bytes += [zone < Self.conventional ? 1 : 2, state] + [UInt8](repeating: 0, count: 38)
    }
    return (0, bytes)
  }
}
