/// The table of an image's snapshots as bytes, for a change that keeps what it does not know.

struct SnapshotTable {
  struct Entry {
    var snapshot: Qcow2Snapshot
    /// As in the table, with what others have added to it, padded.
    var bytes: [UInt8]
  }

  var entries: [Entry] = []

  /// - Throws: a description is invalid.
  init(_ header: Qcow2Header, _ source: some ImageSource) throws(Qcow2Fault) {
    let (snapshots, byteCount) = try header.snapshotTable(source)
    let table = byteCount == 0 ? [] : try Self.read(source, at: header.snapshotOffset, count: Int(byteCount))
    var start = 0
    for snapshot in snapshots {
      let count = 40 + Int(table.word32(start + 36)) + Int(table.word16(start + 12)) + Int(table.word16(start + 14))
      let end = start + (count + 7) & ~7
      entries.append(Entry(snapshot: snapshot, bytes: Array(table[start..<end])))
      start = end
    }
  }

  /// The padding of the last entry may lie beyond the end of the file.
  private static func read(_ source: some ImageSource, at offset: UInt64, count: Int) throws(Qcow2Fault) -> [UInt8] {
    let bytes: [UInt8]
    do { bytes = try source.read(at: offset, count: count) } catch { throw .cannotRead(error) }
    guard bytes.count > count - 8 else { throw .pastEnd(.snapshotTable, offset: offset) }
    return bytes + [UInt8](repeating: 0, count: count - bytes.count)
  }

  var bytes: [UInt8] { entries.flatMap(\.bytes) }

  /// By name or number, as `Qcow2Header.snapshot`.
  func index(of name: String) throws(Qcow2Fault) -> Int {
    guard
      let index = entries.firstIndex(where: { $0.snapshot.name == name })
        ?? entries.firstIndex(where: { $0.snapshot.id == name })
    else { throw .noSnapshot(name) }
    return index
  }

  /// The number that the next snapshot gets: above all others, as QEMU counts.
  var nextID: UInt64 { (entries.compactMap { UInt64($0.snapshot.id) }.max() ?? 0) &+ 1 }

  /// An entry with the 24 bytes that version 3 knows beyond the fixed ones: sizes of machine state and disk, and no count of
  /// instructions.
  static func entry(_ snapshot: Qcow2Snapshot) -> Entry {
    let (id, name) = (Array(snapshot.id.utf8), Array(snapshot.name.utf8))
    var bytes = [UInt8](repeating: 0, count: 64)
    bytes.put64(snapshot.level1Offset, at: 0)
    bytes.put32(UInt32(truncatingIfNeeded: snapshot.level1Entries), at: 8)
    bytes.put16(UInt16(truncatingIfNeeded: id.count), at: 12)
    bytes.put16(UInt16(truncatingIfNeeded: name.count), at: 14)
    bytes.put32(snapshot.seconds, at: 16)
    bytes.put32(snapshot.nanoseconds, at: 20)
    bytes.put64(snapshot.clock, at: 24)
    bytes.put32(24, at: 36)
    bytes.put64(snapshot.stateSize, at: 40)
    bytes.put64(snapshot.diskSize ?? 0, at: 48)
    bytes.put64(.max, at: 56)
    bytes += id + name
    bytes += [UInt8](repeating: 0, count: -bytes.count & 7)
    return Entry(snapshot: snapshot, bytes: bytes)
  }
}
