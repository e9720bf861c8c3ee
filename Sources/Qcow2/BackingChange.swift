internal import SystemPackage

/// A change of the backing file's name in an image's header, or its removal.
///
/// A header with its extensions may be longer than a sector, and only a sector is written atomically. So first everything
/// essential is moved into the first sector: the table of feature names is dropped, and comes back at the end. Then the new
/// name is stored where nothing points at it, and one store into the first sector puts it into force.
public struct BackingChange {
  private static let sector = 512
  private let header: Qcow2Header
  private let bytes: [UInt8]
  /// Extensions that are kept unchanged.
  private var kept: [UInt8] = []
  /// The extension with the names of features.
  private var features: [UInt8] = []

  /// - Parameter source: the file.
  public init(_ header: Qcow2Header, _ source: some ImageSource) throws(Qcow2Fault) {
    guard !header.incompatible.contains(.corrupt) else { throw .isCorrupt }
    guard !header.incompatible.contains(.dirty) else { throw .isDirty }
    guard !header.hasDataFile else { throw .externalData }
    self.header = header
    let size = Int(header.clusterSize)
    let start: [UInt8]
    do { start = try source.read(at: 0, count: size) } catch { throw .cannotRead(error) }
    // The header is decoded again from the bytes that are used: the file may have changed since.
    guard try Qcow2Header(FirstCluster(bytes: start, byteCount: source.byteCount)) == header else {
      throw .cannotExamine("its header changes while it is read")
    }
    var bytes = start + [UInt8](repeating: 0, count: size - start.count)
    // Bitmaps are the only autoclear feature that is known here; a writer clears the others.
    if header.version >= 3 { bytes.put64(header.autoclear & 1, at: 88) }
    self.bytes = bytes
    let end = header.backingName == nil ? size : Int(bytes.word64(8))
    var offset = Int(header.headerLength)
    // The header was decoded from these bytes, so this does not go past the end.
    while offset <= end - 8, bytes.word32(offset) != 0 {
      let next = offset + (8 + Int(bytes.word32(offset + 4)) + 7) & ~7
      guard next <= size else { throw .noRoomForName }
      switch Qcow2Extensions.Kind(rawValue: bytes.word32(offset)) {
      case .backingFormat: break
      case .featureNames: features = Array(bytes[offset..<next])
      default: kept += bytes[offset..<next]
      }
      offset = next
    }
  }

  /// The beginning of a file; nothing else of it is read.
  private struct FirstCluster: ImageSource {
    let bytes: [UInt8]
    let byteCount: UInt64

    func read(at offset: UInt64, count: Int) throws(Errno) -> [UInt8] {
      let start = min(Int(clamping: offset), bytes.count)
      return Array(bytes[start..<min(bytes.count, start + count)])
    }
  }

  /// - Parameters:
  ///   - name: 1 to 1023 bytes; `nil`: none.
  ///   - format: such as "raw"; only together with a name.
  /// - Throws: `noRoomForName`, `backingName`.
  public func plan(_ name: [UInt8]?, format: String?) throws(Qcow2Fault) -> StorePlan {
    if let name {
      guard (1...Qcow2Limits.name).contains(name.count), !name.contains(0) else { throw .backingName }
    }
    let size = bytes.count
    let short = extensions(name == nil ? nil : format, with: [])
    let long = extensions(name == nil ? nil : format, with: features)
    let length = Int(header.headerLength)
    if size == Self.sector {
      // The whole cluster is one sector.
      var sector = [UInt8](repeating: 0, count: size)
      let extensions = length + long.count + (name?.count ?? 0) <= size ? long : short
      let place = length + extensions.count
      guard place + (name?.count ?? 0) <= size else { throw .noRoomForName }
      sector.replaceSubrange(..<length, with: bytes[..<length])
      sector.replaceSubrange(length..<place, with: extensions)
      if let name { sector.replaceSubrange(place..<place + name.count, with: name) }
      point(&sector, name, at: place)
      return StorePlan(groups: [[ImageStore(.header, 0, sector)]])
    }
    // First the header with the old name, without the feature names.
    let old = header.backingName.map { ($0, Int(bytes.word64(8))) }
    let before = extensions(header.backingFormat, with: [])
    guard length + max(before.count, short.count) <= min(Self.sector, old?.1 ?? Self.sector) else { throw .noRoomForName }
    var groups: [[ImageStore]] = [[first(before, old?.0, at: old?.1 ?? 0)]]
    guard let name else {
      groups.append([first(short, nil, at: 0)])
      return StorePlan(groups: groups + complete(long, nil, at: 0))
    }
    let place = try room(for: name.count, behind: length + long.count, beside: old.map { $0.1..<$0.1 + $0.0.count })
    groups += [[ImageStore(.header, UInt64(place), name)], [first(short, name, at: place)]]
    return StorePlan(groups: groups + complete(long, name, at: place))
  }

  /// The list of extensions, with its end marker.
  private func extensions(_ format: String?, with more: [UInt8]) -> [UInt8] {
    var result: [UInt8] = []
    if let format {
      var head = [UInt8](repeating: 0, count: 8)
      head.put32(Qcow2Extensions.Kind.backingFormat.rawValue, at: 0)
      head.put32(UInt32(format.utf8.count), at: 4)
      result += head + Array(format.utf8)
      result += [UInt8](repeating: 0, count: -result.count & 7)
    }
    return result + kept + more + [UInt8](repeating: 0, count: 8)
  }

  /// - Parameter place: where the name is.
  private func point(_ sector: inout [UInt8], _ name: [UInt8]?, at place: Int) {
    sector.put64(name == nil ? 0 : UInt64(place), at: 8)
    sector.put32(UInt32(name?.count ?? 0), at: 16)
  }

  /// The first sector, with the part of these extensions that fits into it. The bytes after them stay: the old name may be
  /// there.
  private func first(_ extensions: [UInt8], _ name: [UInt8]?, at place: Int) -> ImageStore {
    var sector = Array(bytes[..<Self.sector])
    let length = Int(header.headerLength)
    let part = extensions.prefix(Self.sector - length)
    sector.replaceSubrange(length..<length + part.count, with: part)
    point(&sector, name, at: place)
    return ImageStore(.header, 0, sector)
  }

  /// Stores that bring back the names of features: first the part beyond the first sector, which no reader looks at by then,
  /// and then the sector. None if there is no room before the name.
  private func complete(_ extensions: [UInt8], _ name: [UInt8]?, at place: Int) -> [[ImageStore]] {
    let length = Int(header.headerLength)
    guard !features.isEmpty, length + extensions.count <= (name == nil ? bytes.count : place) else { return [] }
    let rest = Array(extensions.dropFirst(Self.sector - length))
    let last = [first(extensions, name, at: place)]
    return rest.isEmpty ? [last] : [[ImageStore(.header, UInt64(Self.sector), rest)], last]
  }

  /// A place for a name beyond the first sector and, if possible, after the longest extensions, that does not overlap the old
  /// name.
  private func room(for count: Int, behind end: Int, beside old: Range<Int>?) throws(Qcow2Fault) -> Int {
    func rounded(_ place: Int) -> Int { (place + 7) & ~7 }
    let starts = [end, old?.upperBound ?? 0, Self.sector].map { rounded(max($0, Self.sector)) }
    for place in [max(starts[0], starts[1])] + starts where place + count <= bytes.count {
      guard let old, old.overlaps(place..<place + count) else { return place }
    }
    // None of these places has room.
    throw .noRoomForName
  }
}
