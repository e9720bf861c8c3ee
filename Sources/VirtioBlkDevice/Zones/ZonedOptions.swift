/// The options of a disk with zones on an image (virtio 5.2.4: host-managed).
internal import VirtioCore

/// The zones of a disk, and where their states are stored.
public struct ZonedOptions: Equatable, Sendable {
  /// Size of a zone, bytes, a power of two; `nil`: 256 MiB, or less on a small image, so that it has 16 zones.
  public var zoneSize: UInt64?
  /// Bytes of a zone that can be written; `nil`: all of them.
  public var zoneCapacity: UInt64?
  /// Zones at the beginning of the disk that can be written in any order.
  public var conventional = 0
  /// How many zones may be open at once; 0: any number; `nil`: 128 on a disk with more zones than that, otherwise any number,
  /// but at most `maximumActive`.
  public var maximumOpen: UInt32?
  /// How many zones may be open or closed at once; 0 or `nil`: any number.
  public var maximumActive: UInt32?
  /// The largest append, bytes; 0: no appends; `nil`: 4 MiB, or less if a request or a zone is smaller.
  public var maximumAppend: UInt64?
  /// Writes have to begin and end at multiples of this, bytes; `nil`: the logical block.
  public var granularity: UInt64?
  /// Zones that are read-only from now on, as on failing media.
  public var readOnlyZones: [Int] = []
  /// Zones that are offline from now on: they can be neither read nor written.
  public var offlineZones: [Int] = []
  /// The file in which the zones' states are stored; `nil`: beside the image, with `.zones` appended to its name.
  public var file: String?
  /// Accept states that were recorded for another file: the image was copied, or moved to another file system, together with
  /// them.
  public var adopts = false
  /// The number of queues whose requests in flight are recorded for the next process.
  public var queues = 16
  /// Entries of the largest ring, 4 … 32768.
  public var ringEntries = 1024

  /// The default zones, as the properties say.
  public init() {}

  static let usualZoneSize: UInt64 = 256 << 20
  static let usualZones: UInt64 = 16
  static let usualOpen: UInt32 = 128
  static let usualAppend: UInt64 = 4 << 20
  static let smallestZone: UInt64 = 64 << 10
  /// A note of a request has 40 bits for its sector.
  static let mostSectors: UInt64 = 1 << 40

  /// The geometry that the options describe on a disk.
  ///
  /// - Parameters:
  ///   - size: of the disk, bytes.
  ///   - block: its logical block, bytes.
  ///   - request: the largest request, bytes.
  /// - Throws: `ZoneFailure.badOption`.
  func geometry(size: UInt64, block: Int, request: UInt64) throws(ZoneFailure) -> ZoneGeometry {
    let block = UInt64(block)
    guard size >= 512, size / 512 <= Self.mostSectors else {
      throw .badOption("size of the image", "use an image of 512 bytes to 512 TiB")
    }
    let zone = zoneSize ?? Self.zoneSize(for: size, block: block)
    guard zone & (zone &- 1) == 0, zone >= max(Self.smallestZone, block), zone <= 1 << 40 else {
      throw .badOption("zone-size", "use a power of two from \(max(Self.smallestZone, block)) bytes to 1 TiB")
    }
    let count = (size - 1) / zone + 1
    guard count <= UInt64(ZoneGeometry.mostZones) else {
      throw .badOption(
        "zone-size", "that divides the image into \(count) zones, and \(ZoneGeometry.mostZones) is the maximum: use larger ones"
      )
    }
    let grain = granularity ?? block
    guard grain > 0, grain % block == 0, grain <= zone, zone % grain == 0, size % grain == 0, grain <= 1 << 20 else {
      throw .badOption(
        "granularity", "use a multiple of the logical block (\(block) bytes) that zones and the image are multiples of")
    }
    let capacity = zoneCapacity ?? zone
    guard capacity > 0, capacity <= zone, capacity % grain == 0 else {
      throw .badOption("zone-capacity", "use a multiple of \(grain) bytes, at most the size of a zone (\(zone) bytes)")
    }
    guard conventional >= 0, UInt64(conventional) < count else {
      throw .badOption("conventional", "the image has \(count) zones: leave at least one that is written sequentially")
    }
    let active = maximumActive ?? 0
    var usual = count > UInt64(Self.usualOpen) ? Self.usualOpen : 0
    if active > 0 { usual = usual == 0 ? active : min(usual, active) }
    let open = maximumOpen ?? usual
    guard active == 0 || open > 0 && open <= active else {
      throw .badOption("max-active", "open zones are active, too: use at least what max-open is, or 0 for any number")
    }
    let smallest = min(capacity, size - (count - 1) * zone)
    let most = min(request, capacity) / grain * grain
    let append = maximumAppend ?? min(Self.usualAppend / grain * grain, max(min(most, smallest), grain))
    guard append % grain == 0, append <= most else {
      throw .badOption("max-append", "use a multiple of \(grain) bytes, at most \(most), or 0 for no appends")
    }
    for zone in readOnlyZones + offlineZones where zone < 0 || zone >= Int(count) {
      throw .badOption("read-only and offline", "the image has zones 0 to \(count - 1)")
    }
    return ZoneGeometry(
      capacity: size / 512, zoneSectors: zone / 512, zoneCapacity: capacity / 512, conventional: conventional,
      maximumOpen: open,
      maximumActive: active, maximumAppend: UInt32(append / 512), granularity: UInt32(grain / 512))
  }

  private static func zoneSize(for size: UInt64, block: UInt64) -> UInt64 {
    var zone = max(smallestZone, block)
    while zone < usualZoneSize, zone * 2 * usualZones <= size { zone *= 2 }
    // A huge image has larger zones rather than too many.
    while (size - 1) / zone + 1 > UInt64(ZoneGeometry.mostZones) { zone *= 2 }
    return zone
  }
}

/// Why a disk cannot have zones, or not these: one sentence each that says what to do.
public enum ZoneFailure: Error, Hashable, CustomStringConvertible {
  /// The options do not describe possible zones. - remedy: what is possible.
  case badOption(String, String)
  /// The image is neither a raw file nor a block device. - what: what it is, as in "a qcow2 image".
  case notOnThis(path: String, what: String)
  /// The disk is read-only, and zones change when they are written.
  case readOnly(path: String)
  /// The file with the states cannot be used, and why.
  case cannotOpen(path: String, String)
  /// The file with the states does not exist and cannot be made, and why.
  case cannotMake(path: String, String)
  /// The file exists and does not hold states of zones.
  case notZones(path: String)
  /// The file with the states contradicts itself.
  case damaged(path: String, what: String)
  /// The file has the states of another image.
  case otherImage(path: String)
  /// The file has the states of other zones. - what: what differs, as in "zone size in sectors".
  case otherGeometry(path: String, what: String, kept: UInt64, wanted: UInt64)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .badOption(let word, let remedy): "these zones are not possible (\(word)): \(remedy)"
    case .notOnThis(let path, let what):
      "\(printable(path)) is \(what), and zones need a raw file or a block device: leave --zoned out"
    case .readOnly(let path): "zones of \(printable(path)) change when they are written to: leave out --zoned or --read-only"
    case .cannotOpen(let path, let error):
      "the states of the zones in \(printable(path)) cannot be used: \(error); name another file with file= in --zoned"
    case .cannotMake(let path, let error):
      "the states of the zones cannot be stored in \(printable(path)): \(error); a server in its sandbox cannot create files: serve "
        + "the disk once with a server of its own and the same --zoned, or name a file with file= that can be created"
    case .notZones(let path):
      "\(printable(path)) exists and is not a file with the states of zones: name another file with file= in --zoned"
    case .damaged(let path, let what):
      "the states of the zones in \(printable(path)) are damaged (\(what)): replace the file with a copy, or remove it, after which all zones "
        + "are empty"
    case .otherImage(let path):
      "\(printable(path)) holds the states of another image's zones: name the right file with file= in --zoned, or add adopt there if "
        + "the image was copied together with it"
    case .otherGeometry(let path, let what, let kept, let wanted):
      "\(printable(path)) holds the states of zones with another \(what) (\(kept) instead of \(wanted)): use the old value again, "
        + "or remove the file, after which all zones are empty"
    }
  }
}
