/// How a zoned disk is divided, and the limits of its zones (virtio 5.2.4, `zoned`).

/// Numbers in 512-byte sectors.
struct ZoneGeometry: Sendable, Hashable {
  /// Of the disk.
  var capacity: UInt64
  /// Of every zone but the last, which may be shorter; a power of two.
  var zoneSectors: UInt64
  /// What can be written in a sequential zone, from its beginning.
  var zoneCapacity: UInt64
  /// Zones at the beginning that can be written in any order.
  var conventional: Int
  /// Zones that may be open at once, and open or closed; 0: any number.
  var maximumOpen: UInt32
  var maximumActive: UInt32
  /// The largest append; 0: no appends.
  var maximumAppend: UInt32
  /// Writes in sequential zones begin and end at multiples of this.
  var granularity: UInt32

  /// The most zones that a disk can have. Each takes 8 bytes in a record, which is written with a flush.
  static let mostZones = 1 << 16

  var count: Int { Int((capacity + zoneSectors - 1) / zoneSectors) }

  /// - Parameter sector: inside the disk.
  func zone(of sector: UInt64) -> Int { Int(sector / zoneSectors) }
  func start(of zone: Int) -> UInt64 { UInt64(zone) * zoneSectors }
  func length(of zone: Int) -> UInt64 { min(zoneSectors, capacity - start(of: zone)) }
  func isConventional(_ zone: Int) -> Bool { zone < conventional }
  func writable(in zone: Int) -> UInt64 {
    isConventional(zone) ? length(of: zone) : min(zoneCapacity, length(of: zone))
  }

  /// The zone that starts at this sector.
  func zone(startingAt sector: UInt64) -> Int? {
    sector < capacity && sector % zoneSectors == 0 ? zone(of: sector) : nil
  }
}

/// The state of a zone, as in reports (virtio 5.2.6).
enum ZoneState: UInt8, CaseIterable, Sendable {
  case notWritePointer = 0
  case empty = 1
  case implicitlyOpen = 2
  case explicitlyOpen = 3
  case closed = 4
  case readOnly = 13
  case full = 14
  case offline = 15

  var isOpen: Bool { self == .implicitlyOpen || self == .explicitlyOpen }
  var isActive: Bool { isOpen || self == .closed }
}

struct Zone: Hashable, Sendable {
  var state: ZoneState
  /// The write pointer, sectors from the beginning of the zone; in a full zone, the end of what was written.
  var pointer: UInt32 = 0
  /// Sectors from the beginning whose writes have completed, so that they can be read. The rest up to the write pointer is
  /// in flight.
  var written: UInt32 = 0
}

extension Zone {
  /// The word that is stored. Writes in flight do not count: a later process sees the zone as if they had never been
  /// submitted.
  var word: UInt64 {
    var state = state
    if pointer != written, state == .full { state = .implicitlyOpen }
    if written == 0, state == .implicitlyOpen || state == .closed { state = .empty }
    return UInt64(written) | UInt64(state.rawValue) << 32
  }

  /// - Returns: `nil` when no zone of this kind can have this state.
  init?(word: UInt64, zone: Int, _ geometry: ZoneGeometry) {
    guard word >> 40 == 0, let state = ZoneState(rawValue: UInt8(truncatingIfNeeded: word >> 32)) else { return nil }
    let written = UInt32(truncatingIfNeeded: word)
    let writable = geometry.writable(in: zone)
    guard UInt64(written) <= writable else { return nil }
    switch state {
    case .notWritePointer: guard geometry.isConventional(zone), written == 0 else { return nil }
    case .empty: guard !geometry.isConventional(zone), written == 0 else { return nil }
    case .implicitlyOpen, .closed: guard !geometry.isConventional(zone), written > 0, written < writable else { return nil }
    case .explicitlyOpen: guard !geometry.isConventional(zone), written < writable else { return nil }
    case .full: guard !geometry.isConventional(zone) else { return nil }
    case .readOnly, .offline: break
    }
    self.init(state: state, pointer: written, written: written)
  }
}
