/// The zones of a disk as a value: a command goes in, its outcome comes out. It neither waits nor stores anything.
internal import VirtioCore

/// The state machine of the zones (virtio 5.2.6, "Zoned block devices").
struct ZoneTable: Sendable {
  let geometry: ZoneGeometry
  private(set) var zones: [Zone]
  /// Implicitly open zones, oldest first: the device may close them.
  private(set) var implicit: [Int] = []
  private(set) var explicitCount = 0
  private(set) var closedCount = 0
  /// Zones that have changed since `takeChanged` was last called.
  private(set) var changed: [Int] = []

  /// The outcome of a write.
  enum Place: Equatable, Sendable {
    /// It goes to this sector of the disk; `zone`: a zone with a write pointer, which has advanced.
    case accepted(sector: UInt64, zone: Int?)
    case refused(BlockStatus)
  }

  /// The outcome of a read.
  enum Readable: Equatable, Sendable {
    /// This many sectors have been written; those after them read as zeroes.
    case sectors(UInt64)
    case refused(BlockStatus)
  }

  /// - Parameter zones: `nil`: nothing was ever written.
  init(_ geometry: ZoneGeometry, zones: [Zone]? = nil) {
    self.geometry = geometry
    self.zones =
      zones ?? (0..<geometry.count).map { Zone(state: geometry.isConventional($0) ? .notWritePointer : .empty) }
    for (index, zone) in self.zones.enumerated() {
      switch zone.state {
      case .implicitlyOpen: implicit.append(index)
      case .explicitlyOpen: explicitCount += 1
      case .closed: closedCount += 1
      default: break
      }
    }
    // The recorded states may have one active zone more than allowed, if writes were in flight when they were recorded.
    while geometry.maximumOpen > 0, openCount > Int(geometry.maximumOpen), closeOldest() {}
    changed = []
  }

  var openCount: Int { implicit.count + explicitCount }
  var activeCount: Int { openCount + closedCount }

  mutating func takeChanged(_ each: (Int) -> Void) {
    for zone in changed { each(zone) }
    changed.removeAll(keepingCapacity: true)
  }

  // MARK: Data

  /// OUT, or WRITE_ZEROES. - Parameters: sectors; inside the disk.
  mutating func write(at sector: UInt64, count: UInt64) -> Place {
    guard count > 0 else { return writeNothing(at: sector) }
    let zone = geometry.zone(of: sector)
    let last = geometry.zone(of: sector + count - 1)
    if let status = refusalToWrite(zone) { return .refused(status) }
    guard !geometry.isConventional(zone) else {
      // No request crosses the border of a zone with a write pointer; conventional zones have no borders.
      for other in zone...last {
        guard geometry.isConventional(other) else { return .refused(.zoneInvalid) }
        if let status = refusalToWrite(other) { return .refused(status) }
      }
      return .accepted(sector: sector, zone: nil)
    }
    guard zone == last else { return .refused(.zoneInvalid) }
    guard zones[zone].state != .full else { return .refused(.zoneInvalid) }
    let offset = sector - geometry.start(of: zone)
    guard offset == UInt64(zones[zone].pointer), count % UInt64(geometry.granularity) == 0 else {
      return .refused(.zoneUnaligned)
    }
    return advance(zone, by: count)
  }

  private func writeNothing(at sector: UInt64) -> Place {
    guard sector < geometry.capacity else { return .accepted(sector: sector, zone: nil) }
    if let status = refusalToWrite(geometry.zone(of: sector)) { return .refused(status) }
    return .accepted(sector: sector, zone: nil)
  }

  /// ZONE_APPEND. - Parameter sector: any.
  mutating func append(to sector: UInt64, count: UInt64) -> Place {
    guard geometry.maximumAppend > 0 else { return .refused(.unsupported) }
    guard let zone = geometry.zone(startingAt: sector), !geometry.isConventional(zone), count > 0,
      count <= UInt64(geometry.maximumAppend)
    else { return .refused(.zoneInvalid) }
    if let status = refusalToWrite(zone) { return .refused(status) }
    guard zones[zone].state != .full else { return .refused(.zoneInvalid) }
    guard count % UInt64(geometry.granularity) == 0 else { return .refused(.zoneUnaligned) }
    return advance(zone, by: count)
  }

  private func refusalToWrite(_ zone: Int) -> BlockStatus? {
    switch zones[zone].state {
    case .readOnly, .offline: .zoneInvalid
    default: nil
    }
  }

  /// Advances a write pointer, and opens the zone if necessary.
  private mutating func advance(_ zone: Int, by count: UInt64) -> Place {
    let pointer = zones[zone].pointer
    guard count <= geometry.writable(in: zone) - UInt64(pointer) else { return .refused(.zoneInvalid) }
    if !zones[zone].state.isOpen {
      if let status = makeRoom(for: zone) { return .refused(status) }
      become(.implicitlyOpen, zone)
    }
    zones[zone].pointer += UInt32(count)
    if UInt64(zones[zone].pointer) == geometry.writable(in: zone) { become(.full, zone) }
    note(zone)
    return .accepted(sector: geometry.start(of: zone) + UInt64(pointer), zone: zone)
  }

  /// IN. - Parameters: sectors; inside the disk.
  func read(at sector: UInt64, count: UInt64) -> Readable {
    guard count > 0, sector < geometry.capacity else { return .sectors(0) }
    let zone = geometry.zone(of: sector)
    let last = geometry.zone(of: sector + count - 1)
    guard zones[zone].state != .offline else { return .refused(.zoneInvalid) }
    guard !geometry.isConventional(zone) else {
      for other in zone...last where !geometry.isConventional(other) || zones[other].state == .offline {
        return .refused(.zoneInvalid)
      }
      return .sectors(count)
    }
    guard zone == last else { return .refused(.zoneInvalid) }
    let end = geometry.start(of: zone) + UInt64(zones[zone].written)
    return .sectors(min(count, end > sector ? end - sector : 0))
  }

  // MARK: Completions

  /// All writes of a zone up to here have completed.
  mutating func settle(_ zone: Int, written: UInt32) {
    zones[zone].written = written
    note(zone)
  }

  /// A write that began here failed: the next one goes here. If that write had filled the zone, the zone is no longer full,
  /// and there may now be one active zone more than allowed; no other zone becomes active until that has changed.
  mutating func retract(_ zone: Int, to pointer: UInt32) {
    zones[zone].pointer = pointer
    // A zone that was finished has no write in flight.
    if zones[zone].state == .full { become(pointer > 0 ? .closed : .empty, zone) }
    if pointer == 0, zones[zone].state == .implicitlyOpen || zones[zone].state == .closed { become(.empty, zone) }
    note(zone)
  }

  // MARK: Commands

  /// ZONE_OPEN. - Parameter sector: any; only the first of a zone is valid.
  mutating func open(_ sector: UInt64) -> BlockStatus {
    guard let zone = sequential(sector) else { return .zoneInvalid }
    switch zones[zone].state {
    case .explicitlyOpen: return .ok
    case .implicitlyOpen: break
    case .empty, .closed: if let status = makeRoom(for: zone) { return status }
    case .notWritePointer, .readOnly, .full, .offline: return .zoneInvalid
    }
    become(.explicitlyOpen, zone)
    return .ok
  }

  mutating func close(_ sector: UInt64) -> BlockStatus {
    guard let zone = sequential(sector) else { return .zoneInvalid }
    switch zones[zone].state {
    case .closed: return .ok
    case .implicitlyOpen, .explicitlyOpen:
      become(zones[zone].pointer > 0 ? .closed : .empty, zone)
      return .ok
    case .notWritePointer, .empty, .readOnly, .full, .offline: return .zoneInvalid
    }
  }

  /// Also for empty and closed zones, as on drives: the specification lists neither this transition nor an error for it.
  mutating func finish(_ sector: UInt64) -> BlockStatus {
    guard let zone = sequential(sector) else { return .zoneInvalid }
    switch zones[zone].state {
    case .full: return .ok
    case .empty, .closed, .implicitlyOpen, .explicitlyOpen:
      become(.full, zone)
      return .ok
    case .notWritePointer, .readOnly, .offline: return .zoneInvalid
    }
  }

  mutating func reset(_ sector: UInt64) -> BlockStatus {
    guard let zone = sequential(sector), zones[zone].state != .readOnly, zones[zone].state != .offline else {
      return .zoneInvalid
    }
    empty(zone)
    return .ok
  }

  /// ZONE_RESET_ALL: every zone that can be reset.
  mutating func resetAll() {
    for zone in geometry.conventional..<max(geometry.conventional, zones.count) {
      switch zones[zone].state {
      case .closed, .implicitlyOpen, .explicitlyOpen, .full: empty(zone)
      case .notWritePointer, .empty, .readOnly, .offline: break
      }
    }
  }

  /// A zone fails, as on failing media: it becomes read-only or offline. Offline is final.
  mutating func fail(_ zone: Int, _ state: ZoneState) {
    precondition(state == .readOnly || state == .offline, "a zone that fails becomes read-only or offline")
    guard zones[zone].state != .offline else { return }
    become(state, zone)
  }

  private func sequential(_ sector: UInt64) -> Int? {
    geometry.zone(startingAt: sector).flatMap { geometry.isConventional($0) ? nil : $0 }
  }

  private mutating func empty(_ zone: Int) {
    guard zones[zone] != Zone(state: .empty) else { return }
    zones[zone].pointer = 0
    zones[zone].written = 0
    become(.empty, zone)
  }

  // MARK: Resources

  /// Makes room for opening a zone that is empty or closed. - Returns: the resource that is missing.
  private mutating func makeRoom(for zone: Int) -> BlockStatus? {
    if zones[zone].state != .closed, geometry.maximumActive > 0, activeCount >= Int(geometry.maximumActive) {
      return .zoneActiveResource
    }
    guard geometry.maximumOpen > 0, openCount >= Int(geometry.maximumOpen) else { return nil }
    return closeOldest() ? nil : .zoneOpenResource
  }

  private mutating func closeOldest() -> Bool {
    guard let zone = implicit.first else { return false }
    become(.closed, zone)
    return true
  }

  private mutating func become(_ state: ZoneState, _ zone: Int) {
    switch zones[zone].state {
    case .implicitlyOpen: implicit.removeAll { $0 == zone }
    case .explicitlyOpen: explicitCount -= 1
    case .closed: closedCount -= 1
    default: break
    }
    switch state {
    case .implicitlyOpen: implicit.append(zone)
    case .explicitlyOpen: explicitCount += 1
    case .closed: closedCount += 1
    default: break
    }
    zones[zone].state = state
    note(zone)
  }

  private mutating func note(_ zone: Int) {
    if changed.last != zone { changed.append(zone) }
  }
}
