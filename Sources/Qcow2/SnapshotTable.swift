/// The table of an image's snapshots as bytes, for a change that keeps what it does not know.

struct SnapshotTable {
  struct Entry {
    var snapshot: Qcow2Snapshot
    /// As in the table, with what others have added to it, padded.
    var bytes: [UInt8]
  }

  var entries: [Entry] = []

  /// How many bytes the table has in the file.
  var storedBytes: UInt64 = 0

  var bytes: [UInt8] { entries.flatMap(\.bytes) }

  /// By name or number, byte by byte. Programs differ in which of the two goes before, so there has to be only one.
  func index(of name: String) throws(Qcow2Fault) -> Int {
    let found = entries.indices.filter {
      entries[$0].snapshot.isCalled(name) || entries[$0].snapshot.id.utf8.elementsEqual(name.utf8)
    }
    guard let first = found.first else { throw .noSnapshot(name) }
    guard found.count == 1 else { throw .ambiguousSnapshot(name) }
    return first
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

extension Qcow2Snapshot {
  /// Bytes are compared: two names may be the same text and not the same name.
  func isCalled(_ other: String) -> Bool { name.utf8.elementsEqual(other.utf8) }
}
