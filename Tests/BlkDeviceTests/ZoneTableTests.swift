/// Zones as a value, checked against a table of what the specification says of each state and each event (virtio 5.2.6).
import GuestDriver
import Testing

@testable import VirtioBlkDevice

@Suite struct ZoneTableTests {
  /// One conventional zone, and five sequential-write zones; the last is shorter.
  static let geometry = ZoneGeometry(
    capacity: 5 * 16 + 8, zoneSectors: 16, zoneCapacity: 12, conventional: 1, maximumOpen: 0, maximumActive: 0,
    maximumAppend: 8,
    granularity: 2)
  static let zone = 2
  static var start: UInt64 { geometry.start(of: zone) }

  /// How a zone gets into a state, and the result of each event in that state.
  struct Row: Sendable, CustomTestStringConvertible {
    var name: String
    var make: @Sendable (inout ZoneTable) -> Void
    var pointer: UInt64
    /// The result of each event.
    var expected: [Event: (BlockStatus, ZoneState)]
    var testDescription: String { name }
  }

  enum Event: CaseIterable {
    case write, append, fill, open, close, finish, reset, resetAll
    /// Not at the write pointer; not a whole granule; beyond the writable capacity; beyond the end of the zone; empty.
    case elsewhere, odd, tooMuch, crossing, nothing
    /// An append to the middle of the zone; of half a granule; longer than allowed; empty.
    case appendInside, appendOdd, appendTooMuch, appendNothing
    /// A command for the middle of the zone.
    case openInside, resetInside
  }

  static func happen(_ event: Event, _ table: inout ZoneTable, pointer: UInt64) -> BlockStatus {
    func status(_ place: ZoneTable.Place) -> BlockStatus {
      switch place {
      case .accepted: .ok
      case .refused(let status): status
      }
    }
    let at = start + pointer
    switch event {
    case .write: return status(table.write(at: at, count: 2))
    case .append: return status(table.append(to: start, count: 2))
    case .fill: return status(table.write(at: at, count: 12 - pointer))
    case .open: return table.open(start)
    case .close: return table.close(start)
    case .finish: return table.finish(start)
    case .reset: return table.reset(start)
    case .resetAll:
      table.resetAll()
      return .ok
    case .elsewhere: return status(table.write(at: at + 2, count: 2))
    case .odd: return status(table.write(at: at, count: 1))
    case .tooMuch: return status(table.write(at: at, count: 14 - pointer))
    case .crossing: return status(table.write(at: at, count: 18 - pointer))
    case .nothing: return status(table.write(at: at, count: 0))
    case .appendInside: return status(table.append(to: start + 2, count: 2))
    case .appendOdd: return status(table.append(to: start, count: 1))
    case .appendTooMuch: return status(table.append(to: start, count: 10))
    case .appendNothing: return status(table.append(to: start, count: 0))
    case .openInside: return table.open(start + 2)
    case .resetInside: return table.reset(start + 2)
    }
  }

  /// Events that are refused in every zone, and leave its state unchanged.
  private static func row(
    _ name: String, pointer: UInt64 = 4, _ state: ZoneState, _ expected: [Event: (BlockStatus, ZoneState)],
    _ make: @escaping @Sendable (inout ZoneTable) -> Void
  ) -> Row {
    var all: [Event: (BlockStatus, ZoneState)] = [
      .elsewhere: (.zoneUnaligned, state), .odd: (.zoneUnaligned, state), .tooMuch: (.zoneInvalid, state),
      .crossing: (.zoneInvalid, state), .nothing: (.ok, state), .appendInside: (.zoneInvalid, state),
      .appendOdd: (.zoneUnaligned, state), .appendTooMuch: (.zoneInvalid, state), .appendNothing: (.zoneInvalid, state),
      .openInside: (.zoneInvalid, state), .resetInside: (.zoneInvalid, state),
    ]
    all.merge(expected) { $1 }
    return Row(name: name, make: make, pointer: pointer, expected: all)
  }

  static let rows: [Row] = [
    row(
      "EMPTY", pointer: 0, .empty,
      [
        .write: (.ok, .implicitlyOpen), .append: (.ok, .implicitlyOpen), .fill: (.ok, .full), .open: (.ok, .explicitlyOpen),
        .close: (.zoneInvalid, .empty), .finish: (.ok, .full), .reset: (.ok, .empty), .resetAll: (.ok, .empty),
      ]
    ) { _ in },
    row(
      "IOPEN", .implicitlyOpen,
      [
        .write: (.ok, .implicitlyOpen), .append: (.ok, .implicitlyOpen), .fill: (.ok, .full), .open: (.ok, .explicitlyOpen),
        .close: (.ok, .closed), .finish: (.ok, .full), .reset: (.ok, .empty), .resetAll: (.ok, .empty),
      ]
    ) { _ = $0.write(at: start, count: 4) },
    row(
      "EOPEN, nothing written", pointer: 0, .explicitlyOpen,
      [
        .write: (.ok, .explicitlyOpen), .append: (.ok, .explicitlyOpen), .fill: (.ok, .full), .open: (.ok, .explicitlyOpen),
        .close: (.ok, .empty), .finish: (.ok, .full), .reset: (.ok, .empty), .resetAll: (.ok, .empty),
      ]
    ) { _ = $0.open(start) },
    row(
      "EOPEN", .explicitlyOpen,
      [
        .write: (.ok, .explicitlyOpen), .append: (.ok, .explicitlyOpen), .fill: (.ok, .full), .open: (.ok, .explicitlyOpen),
        .close: (.ok, .closed), .finish: (.ok, .full), .reset: (.ok, .empty), .resetAll: (.ok, .empty),
      ]
    ) {
      _ = $0.open(start)
      _ = $0.write(at: start, count: 4)
    },
    row(
      "CLOSED", .closed,
      [
        .write: (.ok, .implicitlyOpen), .append: (.ok, .implicitlyOpen), .fill: (.ok, .full), .open: (.ok, .explicitlyOpen),
        .close: (.ok, .closed), .finish: (.ok, .full), .reset: (.ok, .empty), .resetAll: (.ok, .empty),
      ]
    ) {
      _ = $0.write(at: start, count: 4)
      _ = $0.close(start)
    },
    row(
      "FULL", .full,
      [
        .write: (.zoneInvalid, .full), .append: (.zoneInvalid, .full), .fill: (.zoneInvalid, .full),
        .open: (.zoneInvalid, .full),
        .close: (.zoneInvalid, .full), .finish: (.ok, .full), .reset: (.ok, .empty), .resetAll: (.ok, .empty),
        .elsewhere: (.zoneInvalid, .full), .odd: (.zoneInvalid, .full), .appendOdd: (.zoneInvalid, .full),
      ]
    ) {
      _ = $0.write(at: start, count: 4)
      _ = $0.finish(start)
    },
    row(
      "RDONLY", .readOnly,
      Dictionary(uniqueKeysWithValues: Event.allCases.map { ($0, ($0 == .resetAll ? .ok : .zoneInvalid, .readOnly)) })
    ) {
      _ = $0.write(at: start, count: 4)
      $0.fail(zone, .readOnly)
    },
    row(
      "OFFLINE", .offline,
      Dictionary(uniqueKeysWithValues: Event.allCases.map { ($0, ($0 == .resetAll ? .ok : .zoneInvalid, .offline)) })
    ) { $0.fail(zone, .offline) },
  ]

  @Test(arguments: rows) func everyEventInEveryState(row: Row) throws {
    for event in Event.allCases {
      var table = ZoneTable(Self.geometry)
      row.make(&table)
      let before = table.zones
      let (status, state) = try #require(row.expected[event], "\(event)")
      #expect(Self.happen(event, &table, pointer: row.pointer) == status, "\(event)")
      #expect(table.zones[Self.zone].state == state, "\(event)")
      // No other zone changes, and a refused event changes nothing at all.
      for (index, zone) in table.zones.enumerated() where index != Self.zone { #expect(zone == before[index], "\(event)") }
      if status != .ok { #expect(table.zones == before, "\(event)") }
      Self.expectSane(table)
    }
  }

  static func expectSane(_ table: ZoneTable, _ place: SourceLocation = #_sourceLocation) {
    let zones = table.zones
    #expect(table.implicit.sorted() == zones.indices.filter { zones[$0].state == .implicitlyOpen }, sourceLocation: place)
    #expect(table.explicitCount == zones.filter { $0.state == .explicitlyOpen }.count, sourceLocation: place)
    #expect(table.closedCount == zones.filter { $0.state == .closed }.count, sourceLocation: place)
    for (index, zone) in zones.enumerated() {
      #expect(zone.written <= zone.pointer && UInt64(zone.pointer) <= table.geometry.writable(in: index), sourceLocation: place)
      // Its stored form is a valid zone.
      let kept = Zone(word: zone.word, zone: index, table.geometry)
      #expect(kept != nil, "zone \(index): \(zone)", sourceLocation: place)
      if zone.written == zone.pointer { #expect(kept == zone, sourceLocation: place) }
    }
  }

  @Test func conventionalZones() {
    var table = ZoneTable(Self.geometry)
    #expect(table.write(at: 3, count: 5) == .accepted(sector: 3, zone: nil))
    #expect(table.write(at: 0, count: 1) == .accepted(sector: 0, zone: nil))
    // Nothing may cross into a sequential-write zone.
    #expect(table.write(at: 14, count: 4) == .refused(.zoneInvalid))
    #expect(table.read(at: 14, count: 4) == .refused(.zoneInvalid))
    #expect(table.read(at: 0, count: 16) == .sectors(16))
    #expect(table.append(to: 0, count: 2) == .refused(.zoneInvalid))
    for status in [table.open(0), table.close(0), table.finish(0), table.reset(0)] { #expect(status == .zoneInvalid) }
    table.resetAll()
    #expect(table.zones[0] == Zone(state: .notWritePointer))
    // Beyond the disk there is no zone.
    for sector: UInt64 in [96, 1 << 40, .max] {
      #expect(table.open(sector) == .zoneInvalid)
      #expect(table.append(to: sector, count: 2) == .refused(.zoneInvalid))
    }
  }

  @Test func theLastZoneIsShorter() {
    var table = ZoneTable(Self.geometry)
    #expect(table.write(at: 80, count: 8) == .accepted(sector: 80, zone: 5))
    #expect(table.zones[5].state == .full)
    #expect(table.append(to: 80, count: 2) == .refused(.zoneInvalid))
  }

  /// Sectors that were not written are never read from the medium.
  @Test func readsEndWhereWritesDo() {
    var table = ZoneTable(Self.geometry)
    let start = Self.start
    #expect(table.read(at: start, count: 4) == .sectors(0))
    _ = table.write(at: start, count: 4)
    // The write is in flight.
    #expect(table.read(at: start, count: 4) == .sectors(0))
    table.settle(Self.zone, written: 4)
    #expect(table.read(at: start, count: 4) == .sectors(4))
    #expect(table.read(at: start + 2, count: 6) == .sectors(2))
    #expect(table.read(at: start + 6, count: 2) == .sectors(0))
    #expect(table.read(at: start + 8, count: 9) == .refused(.zoneInvalid))
    _ = table.finish(start)
    #expect(table.read(at: start, count: 16) == .sectors(4))
    _ = table.reset(start)
    #expect(table.read(at: start, count: 4) == .sectors(0))
  }

  @Test func aFailedWriteMovesThePointerBack() {
    var table = ZoneTable(Self.geometry)
    _ = table.write(at: Self.start, count: 4)
    table.retract(Self.zone, to: 0)
    #expect(table.zones[Self.zone] == Zone(state: .empty))
    _ = table.write(at: Self.start, count: 4)
    table.settle(Self.zone, written: 4)
    _ = table.write(at: Self.start + 4, count: 8)
    #expect(table.zones[Self.zone].state == .full)
    table.retract(Self.zone, to: 4)
    // The data that filled it is not there.
    #expect(table.zones[Self.zone] == Zone(state: .closed, pointer: 4, written: 4))
    Self.expectSane(table)
    _ = table.reset(Self.start)
    _ = table.write(at: Self.start, count: 12)
    table.retract(Self.zone, to: 0)
    #expect(table.zones[Self.zone] == Zone(state: .empty))
    Self.expectSane(table)
  }

  /// A zone that turns out not to be full may exceed the limit of active zones: no other becomes active then, and it can be
  /// filled.
  @Test func aFailedWriteThatFilledAZoneAndTheLimits() {
    var table = Self.table(open: 1, active: 1)
    _ = table.write(at: Self.at(1), count: 4)
    table.settle(1, written: 4)
    _ = table.write(at: Self.at(1, 4), count: 8)
    #expect(table.write(at: Self.at(2), count: 2) == .accepted(sector: Self.at(2), zone: 2))
    table.retract(1, to: 4)
    #expect(table.activeCount == 2)
    #expect(table.write(at: Self.at(3), count: 2) == .refused(.zoneActiveResource))
    #expect(table.write(at: Self.at(1, 4), count: 8) == .accepted(sector: Self.at(1, 4), zone: 1))
    Self.expectSane(table)
  }

  @Test func withoutAppends() {
    var geometry = Self.geometry
    geometry.maximumAppend = 0
    var table = ZoneTable(geometry)
    #expect(table.append(to: Self.start, count: 2) == .refused(.unsupported))
  }

  // MARK: Resources

  static func table(open: UInt32, active: UInt32) -> ZoneTable {
    var geometry = Self.geometry
    (geometry.maximumOpen, geometry.maximumActive) = (open, active)
    return ZoneTable(geometry)
  }

  static func at(_ zone: Int, _ offset: UInt64 = 0) -> UInt64 { geometry.start(of: zone) + offset }

  /// Implicitly open zones are closed when needed, the oldest first; explicitly open ones are not.
  @Test func theOldestImplicitlyOpenZoneIsClosed() {
    var table = Self.table(open: 2, active: 0)
    _ = table.write(at: Self.at(1), count: 2)
    _ = table.write(at: Self.at(2), count: 2)
    #expect(table.write(at: Self.at(3), count: 2) == .accepted(sector: Self.at(3), zone: 3))
    #expect(table.zones.map(\.state)[1...3] == [.closed, .implicitlyOpen, .implicitlyOpen])
    #expect(table.open(Self.at(4)) == .ok)
    #expect(table.zones.map(\.state)[1...4] == [.closed, .closed, .implicitlyOpen, .explicitlyOpen])
    #expect(table.open(Self.at(3)) == .ok)
    let before = table.zones
    #expect(table.write(at: Self.at(1, 2), count: 2) == .refused(.zoneOpenResource))
    #expect(table.append(to: Self.at(5), count: 2) == .refused(.zoneOpenResource))
    #expect(table.open(Self.at(1)) == .zoneOpenResource)
    #expect(table.zones == before)
    // An open zone needs no new resource.
    #expect(table.write(at: Self.at(3, 2), count: 2) == .accepted(sector: Self.at(3, 2), zone: 3))
    Self.expectSane(table)
  }

  @Test func activeZones() {
    var table = Self.table(open: 1, active: 2)
    _ = table.write(at: Self.at(1), count: 2)
    _ = table.write(at: Self.at(2), count: 2)
    // Both limits are reached: the status is that for active zones.
    #expect(table.write(at: Self.at(3), count: 2) == .refused(.zoneActiveResource))
    #expect(table.open(Self.at(3)) == .zoneActiveResource)
    // A closed zone is already active.
    #expect(table.write(at: Self.at(1, 2), count: 2) == .accepted(sector: Self.at(1, 2), zone: 1))
    #expect(table.zones[2].state == .closed)
    #expect(table.finish(Self.at(2)) == .ok)
    #expect(table.open(Self.at(3)) == .ok)
    #expect(table.zones[1].state == .closed)
    Self.expectSane(table)
  }

  /// Whatever happens, no limit is exceeded, and a refused event changes nothing.
  @Test(arguments: 1...20) func anythingAtAll(seed: UInt64) {
    var random = SeededRandom(seed: seed)
    let (open, active) = (UInt32(random.next() % 4), UInt32(random.next() % 2) * 4)
    var table = Self.table(open: active > 0 ? max(1, open) : open, active: active)
    for _ in 0..<2000 {
      let sector = random.next() % 3 == 0 ? random.next() % 100 : Self.at(Int(random.next() % 6))
      let count = random.next() % 9
      let before = table.zones
      var status = BlockStatus.ok
      func place(_ place: ZoneTable.Place) {
        switch place {
        case .refused(let refusal): status = refusal
        case .accepted(_, let zone?): table.settle(zone, written: table.zones[zone].pointer)
        case .accepted(_, nil): break
        }
      }
      switch random.next() % 8 {
      case 0, 1:
        let zone = Int(random.next() % 6)
        let at = Self.at(zone) + UInt64(table.zones[zone].pointer)
        if at + count <= Self.geometry.capacity { place(table.write(at: at, count: count)) }
      case 2: place(table.append(to: sector, count: count))
      case 3: status = table.open(sector)
      case 4: status = table.close(sector)
      case 5: if random.next() % 4 == 0 { status = table.finish(sector) }
      case 6: status = table.reset(sector)
      default: if random.next() % 50 == 0 { table.resetAll() }
      }
      if status != .ok { #expect(table.zones == before) }
      if table.geometry.maximumOpen > 0 { #expect(table.openCount <= Int(table.geometry.maximumOpen)) }
      if table.geometry.maximumActive > 0 { #expect(table.activeCount <= Int(table.geometry.maximumActive)) }
      Self.expectSane(table)
    }
  }
}
