/// The snapshot table of an image as bytes, for a change that keeps unknown parts of it.

struct SnapshotTable {
  struct Entry {
    var snapshot: Qcow2Snapshot
    /// The bytes in the table, including those that other programs have added, padded.
    var bytes: [UInt8]
  }

  var entries: [Entry] = []

  /// How many bytes the table has in the file.
  var storedBytes: UInt64 = 0

  var bytes: [UInt8] { entries.flatMap(\.bytes) }

  /// Finds a snapshot by name or number, compared byte by byte. Programs differ in which of the two has precedence, so there
  /// must be only one match.
  func index(of name: String) throws(Qcow2Fault) -> Int {
    let found = entries.indices.filter {
      entries[$0].snapshot.isCalled(name) || entries[$0].snapshot.id.utf8.elementsEqual(name.utf8)
    }
    guard let first = found.first else { throw .noSnapshot(name) }
    guard found.count == 1 else { throw .ambiguousSnapshot(name) }
    return first
  }

  /// The number that the next snapshot gets: higher than all others, as in QEMU.
  var nextID: UInt64 { (entries.compactMap { UInt64($0.snapshot.id) }.max() ?? 0) &+ 1 }

  /// An entry with the 24 bytes of extra data of version 3: sizes of machine state and disk, and no instruction count.
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
  /// Compared as bytes: equivalent Unicode strings can be different names.
  func isCalled(_ other: String) -> Bool { name.utf8.elementsEqual(other.utf8) }
}
