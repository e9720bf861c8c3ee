/// Tables that are read when an image is opened, and tables that are read on demand.

extension Qcow2Header {
  /// The L1 table of the active disk.
  ///
  /// - Returns: the offset of the L2 table for each entry, 0 if there is none; as many entries as the disk needs.
  public func level1(_ source: some ImageSource) throws(Qcow2Fault) -> [UInt64] {
    try level1(source, .level1, at: level1Offset, entries: level1Entries, size: size)
  }

  /// The L1 table of a snapshot.
  public func level1(_ source: some ImageSource, of snapshot: Qcow2Snapshot) throws(Qcow2Fault) -> [UInt64] {
    try level1(
      source, .snapshotLevel1, at: snapshot.level1Offset, entries: snapshot.level1Entries, size: snapshot.diskSize ?? size)
  }

  private func level1(
    _ source: some ImageSource, _ part: Qcow2Fault.Part, at offset: UInt64, entries: UInt64, size: UInt64
  ) throws(Qcow2Fault) -> [UInt64] {
    let needed = geometry.level1Entries(for: size)
    guard needed <= Qcow2Limits.level1Entries else { throw .diskTooLarge(size) }
    guard entries >= needed else { throw .level1TooSmall(entries: entries, needed: needed) }
    guard needed > 0 else { return [] }
    let bytes = try source.need(part, at: offset, count: Int(needed) * 8)
    let decoder = Qcow2Entries(self)
    var offsets: [UInt64] = []
    offsets.reserveCapacity(Int(needed))
    for index in 0..<Int(needed) {
      guard let table = try decoder.level1(bytes.word64(index * 8)) else {
        offsets.append(0)
        continue
      }
      guard table < source.byteCount else { throw .pastEnd(.level2, offset: table) }
      guard table >= clusterSize else { throw .overlap(.header, .level2) }
      offsets.append(table)
    }
    // A table that is listed more than once would cost memory without costing space in the file.
    let sorted = offsets.filter { $0 != 0 }.sorted()
    for (one, other) in zip(sorted, sorted.dropFirst()) where one == other { throw .sharedTable(offset: one) }
    return offsets
  }
}

/// An internal snapshot.
public struct Qcow2Snapshot: Hashable, Sendable {
  public var level1Offset: UInt64
  public var level1Entries: UInt64
  public var id: String
  public var name: String
  /// Seconds since 1970, and nanoseconds.
  public var date: (seconds: UInt32, nanoseconds: UInt32) { (seconds, nanoseconds) }
  var seconds: UInt32
  var nanoseconds: UInt32
  /// How long the machine had been running, nanoseconds.
  public var clock: UInt64
  /// Bytes of the machine's state beside the disk.
  public var stateSize: UInt64
  /// Bytes of its disk; `nil`: the same as the active disk.
  public var diskSize: UInt64?
}

extension Qcow2Header {
  /// All snapshots, oldest first, from a table of `snapshotCount` entries of different lengths.
  public func snapshots(_ source: some ImageSource) throws(Qcow2Fault) -> [Qcow2Snapshot] {
    try snapshotTable(source).entries.map(\.snapshot)
  }

  /// - Returns: the snapshots, each with its bytes, and how many bytes the table has.
  func snapshotTable(_ source: some ImageSource) throws(Qcow2Fault) -> SnapshotTable {
    var table = SnapshotTable()
    var offset = snapshotOffset
    for index in 0..<Int(snapshotCount) {
      let fixed = try source.need(.snapshotTable, at: offset, count: 40)
      let extra = Int(fixed.word32(36))
      let (idLength, nameLength) = (Int(fixed.word16(12)), Int(fixed.word16(14)))
      guard extra <= Qcow2Limits.snapshotExtra else { throw .badSnapshot(index: index) }
      let rest = try source.need(.snapshotTable, at: offset + 40, count: extra + idLength + nameLength)
      var snapshot = Qcow2Snapshot(
        level1Offset: fixed.word64(0), level1Entries: UInt64(fixed.word32(8)),
        id: String(decoding: rest[extra..<extra + idLength], as: UTF8.self),
        name: String(decoding: rest[(extra + idLength)...], as: UTF8.self), seconds: fixed.word32(16),
        nanoseconds: fixed.word32(20), clock: fixed.word64(24), stateSize: UInt64(fixed.word32(32)))
      if extra >= 8 { snapshot.stateSize = rest.word64(0) }
      if extra >= 16 { snapshot.diskSize = rest.word64(8) }
      guard snapshot.level1Entries <= Qcow2Limits.level1Entries, snapshot.diskSize ?? 0 < 1 << 63 else {
        throw .badSnapshot(index: index)
      }
      guard geometry.inCluster(snapshot.level1Offset) == 0 else {
        throw .misplaced(.snapshotLevel1, offset: snapshot.level1Offset)
      }
      guard snapshot.level1Offset < Qcow2Limits.offset,
        snapshot.level1Offset + snapshot.level1Entries * 8 <= source.byteCount
      else { throw .pastEnd(.snapshotLevel1, offset: snapshot.level1Offset) }
      // The padding of the last entry may lie beyond the end of the file.
      let bytes = fixed + rest
      table.entries.append(
        SnapshotTable.Entry(snapshot: snapshot, bytes: bytes + [UInt8](repeating: 0, count: -bytes.count & 7)))
      // This cannot overflow: the table ends before the file does, and the file is shorter than 2^63.
      offset += UInt64((40 + extra + idLength + nameLength + 7) & ~7)
      guard offset - snapshotOffset <= Qcow2Limits.snapshotTable else { throw .badSnapshot(index: index) }
    }
    table.storedBytes = offset - snapshotOffset
    return table
  }

  /// - Parameter name: the name of a snapshot, or its number.
  public func snapshot(_ name: String, _ source: some ImageSource) throws(Qcow2Fault) -> Qcow2Snapshot {
    let table = try snapshotTable(source)
    return table.entries[try table.index(of: name)].snapshot
  }
}
