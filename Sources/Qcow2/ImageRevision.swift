/// A change of a whole image while no other program has it open: of its snapshots, its size, or all of its contents.
///
/// All metadata that changes is stored beside the old metadata, in clusters beyond the end of the file that nothing points at.
/// Then one store into the first sector of the header puts it into force. So at every moment the image is in its old or in its
/// new state, and clean in both: no failure in between can damage it. Clusters that only the old metadata used are free
/// afterwards.
///
/// A value that does no I/O except reads. It is used for one change, and `store` ends it.
public struct ImageRevision<Source: ImageSource> {
  private let source: Source
  private let header: Qcow2Header
  private let entries: Qcow2Entries
  private var book: RefcountBook<Source>
  /// The L1 table of the disk, as entries.
  private var active: [UInt64]
  /// Bytes of the disk.
  private var size: UInt64
  private var table: SnapshotTable
  /// The L1 table of the snapshot that is being created.
  private var fresh: [UInt64]?
  /// Bitmaps remain valid.
  private var keepsBitmaps = true
  /// The number of the first cluster that is neither in the file nor has a refcount.
  private var next: UInt64

  /// - Parameter source: the file. Nothing of it may change before the revision is stored.
  /// - Throws: why the image cannot be changed. Everything is checked first, because a refcount that is already wrong would
  ///   lead to clusters that are freed while they are in use.
  public init(_ header: Qcow2Header, _ source: Source) throws(Qcow2Fault) {
    guard !header.incompatible.contains(.corrupt) else { throw .isCorrupt }
    guard !header.incompatible.contains(.dirty) else { throw .isDirty }
    guard !header.hasDataFile else { throw .externalData }
    let report = try Qcow2Check.run(source, header)
    guard report.failures == 0 else { throw .cannotExamine(report.findings.first ?? "") }
    guard report.corruptions == 0 else { throw .hasErrors(report.corruptions) }
    (self.source, self.header) = (source, header)
    entries = Qcow2Entries(header)
    book = try RefcountBook(source, header)
    size = header.size
    let bytes =
      header.level1Entries == 0
      ? [] : try source.need(.level1, at: header.level1Offset, count: Int(header.level1Entries) * 8)
    active = stride(from: 0, to: bytes.count, by: 8).map { bytes.word64($0) }
    table = try header.snapshotTable(source)
    guard let length = source.byteCount.rounded(up: header.clusterSize), length < Qcow2Limits.offset else {
      throw .pastEnd(.data, offset: source.byteCount)
    }
    next = try book.end(from: length / header.clusterSize)
  }

  /// Bytes.
  private var clusterSize: UInt64 { header.clusterSize }

  // MARK: Changes

  /// Makes a snapshot of the present disk.
  ///
  /// - Parameters:
  ///   - name: 1 to 255 bytes; no other snapshot may have it.
  ///   - date: seconds since 1970, and nanoseconds.
  public mutating func createSnapshot(_ name: String, date: (seconds: UInt32, nanoseconds: UInt32)) throws(Qcow2Fault) {
    guard (1...255).contains(name.utf8.count), !name.utf8.contains(0) else { throw .snapshotName(name) }
    guard !table.entries.contains(where: { $0.snapshot.isCalled(name) }) else { throw .snapshotExists(name) }
    guard table.entries.count < Int(Qcow2Limits.snapshots) else { throw .tooManySnapshots(Qcow2Limits.snapshots) }
    let count = Int(header.geometry.level1Entries(for: size))
    guard count > 0 else { throw .emptyDisk }
    let shared = Array(active[..<count])
    try add(1, for: shared)
    fresh = shared
    let snapshot = Qcow2Snapshot(
      level1Offset: 0, level1Entries: UInt64(count), id: "\(table.nextID)", name: name, seconds: date.seconds,
      nanoseconds: date.nanoseconds, clock: 0, stateSize: 0, diskSize: size)
    table.entries.append(SnapshotTable.entry(snapshot))
  }

  /// Deletes a snapshot. - Parameter name: its name or number.
  public mutating func deleteSnapshot(_ name: String) throws(Qcow2Fault) {
    let index = try table.index(of: name)
    let snapshot = table.entries.remove(at: index).snapshot
    try add(-1, for: try level1(snapshot))
    if snapshot.level1Entries > 0 { try book.add(-1, at: snapshot.level1Offset, bytes: snapshot.level1Entries * 8) }
  }

  /// Reverts the disk to a snapshot, including its size. The snapshot stays.
  ///
  /// - Parameter name: its name or number.
  public mutating func applySnapshot(_ name: String) throws(Qcow2Fault) {
    let snapshot = table.entries[try table.index(of: name)].snapshot
    let newSize = snapshot.diskSize ?? size
    guard newSize == size || !hasSnapshotsWithoutSize else { throw .snapshotsWithoutSize }
    let count = header.geometry.level1Entries(for: newSize)
    guard count <= Qcow2Limits.level1Entries else { throw .diskTooLarge(newSize) }
    guard snapshot.level1Entries >= count else { throw .level1TooSmall(entries: snapshot.level1Entries, needed: count) }
    let shared = Array(try level1(snapshot)[..<Int(count)])
    // In this order no refcount is ever above its final value.
    try add(-1, for: active)
    try add(1, for: shared)
    active = shared + [UInt64](repeating: 0, count: max(0, active.count - shared.count))
    size = newSize
    keepsBitmaps = false
  }

  /// A snapshot without a size is as long as the disk, so the disk's size cannot change.
  private var hasSnapshotsWithoutSize: Bool { table.entries.contains { $0.snapshot.diskSize == nil } }

  /// Drops all contents of the disk: it then reads as its backing file, or as zeroes.
  public mutating func empty() throws(Qcow2Fault) {
    try add(-1, for: active)
    active = [UInt64](repeating: 0, count: active.count)
    keepsBitmaps = false
  }

  /// Makes the disk longer, by zeroes. Contents beyond its present end would appear there, so there must be none.
  ///
  /// - Parameters:
  ///   - size: bytes; not less than now.
  ///   - backing: the size of the backing file's disk, bytes; 0 if there is none.
  /// - Throws: `backingIsLonger`, `contentsPastEnd`, and others.
  public mutating func grow(to size: UInt64, over backing: UInt64) throws(Qcow2Fault) {
    guard backing <= self.size else { throw .backingIsLonger(backing) }
    try needNothingPastEnd()
    guard size < 1 << 63 else { throw .diskTooLarge(size) }
    let count = header.geometry.level1Entries(for: size)
    guard count <= Qcow2Limits.level1Entries else { throw .diskTooLarge(size) }
    guard !hasSnapshotsWithoutSize else { throw .snapshotsWithoutSize }
    active += [UInt64](repeating: 0, count: max(0, Int(count) - active.count))
    self.size = size
    keepsBitmaps = false
  }

  /// - Throws: `contentsPastEnd`: a cluster beyond the end of the disk is in use, or the rest of the last one has data.
  private func needNothingPastEnd() throws(Qcow2Fault) {
    let span = header.geometry.level2Span
    for index in active.indices.dropFirst(Int(size / span)) {
      guard let place = try entries.level1(active[index]) else { continue }
      let table = try level2(place)
      var base = UInt64(index) * span
      for start in stride(from: 0, to: table.count, by: header.geometry.entryBytes) {
        defer { base += clusterSize }
        guard base + clusterSize > size, let entry = try Self.entry(table, start, entries) else { continue }
        guard try isZero(entry, from: size - min(base, size)) else { throw .contentsPastEnd }
      }
    }
  }

  /// - Parameter inside: from where on the cluster has to be zero, bytes; 0: the cluster lies beyond the disk, and must have no
  ///   data at all.
  private func isZero(_ entry: ClusterEntry, from inside: UInt64) throws(Qcow2Fault) -> Bool {
    let (place, data): (UInt64, UInt32)
    switch entry.cluster {
    case .unallocated, .zero, .subclusters(nil, _, _): return true
    case .compressed: return false
    case .data(let offset): (place, data) = (offset, .max)
    case .subclusters(let offset?, let bits, _): (place, data) = (offset, bits)
    }
    guard data != 0 else { return true }
    guard inside > 0 else { return false }
    let bytes = try level2(place)
    // A cluster without subclusters is treated as 32 equal parts.
    let part = Int(clusterSize) / 32
    return (0..<32).allSatisfy { index in
      data >> UInt32(index) & 1 == 0
        || bytes[(index * part)..<(index + 1) * part].dropFirst(max(0, Int(inside) - index * part)).allSatisfy { $0 == 0 }
    }
  }

  private func level1(_ snapshot: Qcow2Snapshot) throws(Qcow2Fault) -> [UInt64] {
    guard snapshot.level1Entries > 0 else { return [] }
    let bytes = try source.need(.snapshotLevel1, at: snapshot.level1Offset, count: Int(snapshot.level1Entries) * 8)
    return stride(from: 0, to: bytes.count, by: 8).map { bytes.word64($0) }
  }

  /// Changes the refcounts of everything that an L1 table leads to.
  private mutating func add(_ change: Int64, for level1: [UInt64]) throws(Qcow2Fault) {
    for entry in level1 {
      guard let place = try entries.level1(entry) else { continue }
      try book.add(change, at: place)
      let table = try level2(place)
      for start in stride(from: 0, to: table.count, by: header.geometry.entryBytes) {
        guard let (target, bytes) = try Self.entry(table, start, entries)?.dropped else { continue }
        try book.add(change, at: target, bytes: bytes)
      }
    }
  }

  /// A whole L2 table, or another cluster; bytes beyond the end of the file are zeroes.
  private func level2(_ place: UInt64) throws(Qcow2Fault) -> [UInt8] {
    let bytes: [UInt8]
    do { bytes = try source.read(at: place, count: Int(clusterSize)) } catch { throw .cannotRead(error) }
    return bytes + [UInt8](repeating: 0, count: Int(clusterSize) - bytes.count)
  }

  /// - Returns: `nil` if all of it is 0, as most are.
  private static func entry(
    _ table: [UInt8], _ start: Int, _ entries: Qcow2Entries
  ) throws(Qcow2Fault) -> ClusterEntry? {
    let bitmap = entries.geometry.isExtended ? table.word64(start + 8) : 0
    let word = table.word64(start)
    return word == 0 && bitmap == 0 ? nil : try ClusterEntry(word, bitmap, entries)
  }

  // MARK: Storing

  /// Takes unused clusters, and sets their refcounts.
  private mutating func allocate(_ clusters: UInt64) throws(Qcow2Fault) -> UInt64 {
    // A refcount may be for a cluster that no file can have.
    let limit = Qcow2Limits.offset / clusterSize / 2
    guard next < limit, clusters < limit - next else { throw .isFull }
    let place = next * clusterSize
    try book.add(1, at: place, bytes: clusters * clusterSize)
    next += clusters
    return place
  }

  /// The bytes, padded to whole clusters.
  private func padded(_ bytes: [UInt8]) -> [UInt8] {
    bytes + [UInt8](repeating: 0, count: -bytes.count & Int(clusterSize - 1))
  }

  private mutating func store(
    _ part: Qcow2Fault.Part, _ bytes: [UInt8], _ put: (ImageStore) throws(Qcow2Fault) -> Void
  ) throws(Qcow2Fault) -> UInt64 {
    guard !bytes.isEmpty else { return 0 }
    let bytes = padded(bytes)
    let place = try allocate(UInt64(bytes.count) / clusterSize)
    try put(ImageStore(part, place, bytes))
    return place
  }

  /// - Parameter put: stores metadata where nothing points at it; in any order, but all of it must be stable before the
  ///   returned store.
  /// - Returns: the store that puts the change into force, within the header's first sector.
  public mutating func store(_ put: (ImageStore) throws(Qcow2Fault) -> Void) throws(Qcow2Fault) -> ImageStore {
    try storeTables(put)
    func bytes(_ level1: [UInt64]) -> [UInt8] {
      var bytes = [UInt8](repeating: 0, count: level1.count * 8)
      for (index, entry) in level1.enumerated() { bytes.put64(entry, at: index * 8) }
      return bytes
    }
    if header.level1Entries > 0 { try book.add(-1, at: header.level1Offset, bytes: header.level1Entries * 8) }
    let level1Place = try store(.level1, bytes(active), put)
    if let fresh, let last = table.entries.indices.last {
      table.entries[last].bytes.put64(try store(.snapshotLevel1, bytes(fresh), put), at: 0)
    }
    if table.storedBytes > 0 { try book.add(-1, at: header.snapshotOffset, bytes: table.storedBytes) }
    let snapshots = table.bytes
    guard snapshots.count <= Int(Qcow2Limits.snapshotTable) else { throw .tooManySnapshots(UInt32(table.entries.count)) }
    let snapshotPlace = try store(.snapshotTable, snapshots, put)
    let counts = try storeCounts(put)

    // From the size of the disk to the autoclear bits, which version 2 does not have.
    let length = header.version == 2 ? 72 : 96
    var words = try source.need(.header, at: 0, count: length)
    words.put64(size, at: 24)
    words.put32(UInt32(active.count), at: 36)
    words.put64(level1Place, at: 40)
    words.put64(counts.place, at: 48)
    words.put32(UInt32(counts.clusters), at: 56)
    words.put32(UInt32(table.entries.count), at: 60)
    words.put64(snapshotPlace, at: 64)
    // Bitmaps are the only autoclear feature that is known here.
    if header.version >= 3 { words.put64(header.autoclear & (keepsBitmaps ? 1 : 0), at: 88) }
    return ImageStore(.header, 24, Array(words[24...]))
  }

  /// L2 tables of the disk whose "copied" bits have to change get a new place; the snapshot that is being created shares them.
  /// Other snapshots keep the old tables, in which these bits have no meaning.
  private mutating func storeTables(_ put: (ImageStore) throws(Qcow2Fault) -> Void) throws(Qcow2Fault) {
    for index in active.indices {
      guard let old = try entries.level1(active[index]) else { continue }
      var (place, bytes) = (old, try level2(old))
      if try correct(&bytes) {
        let users: Int64 = (fresh?.count ?? 0) > index ? 2 : 1
        place = try allocate(1)
        try book.add(users - 1, at: place)
        try book.add(-users, at: old)
        try put(.table(at: place, bytes))
      }
      active[index] = place | (try book.count(place / clusterSize) == 1 ? Qcow2Entries.copied : 0)
      if index < fresh?.count ?? 0 { fresh?[index] = place }
    }
  }

  /// Sets the "copied" bits of a table according to the refcounts. - Returns: whether any has changed.
  private mutating func correct(_ table: inout [UInt8]) throws(Qcow2Fault) -> Bool {
    var isChanged = false
    for start in stride(from: 0, to: table.count, by: header.geometry.entryBytes) {
      guard let entry = try Self.entry(table, start, entries), entry.entry & Qcow2Entries.compressed == 0,
        let (target, _) = entry.dropped
      else { continue }
      let isOwn = try book.count(target / clusterSize) == 1
      let word = entry.entry & ~Qcow2Entries.copied | (isOwn ? Qcow2Entries.copied : 0)
      guard word != entry.entry else { continue }
      table.put64(word, at: start)
      isChanged = true
    }
    return isChanged
  }

  /// Every refcount block that changes gets a new place, and so does their table.
  private mutating func storeCounts(
    _ put: (ImageStore) throws(Qcow2Fault) -> Void
  ) throws(Qcow2Fault) -> (place: UInt64, clusters: UInt64) {
    try book.add(-1, at: header.refcountTableOffset, bytes: UInt64(header.refcountTableClusters) * clusterSize)
    var moved: [Int: UInt64] = [:]
    var (place, clusters): (UInt64, UInt64) = (0, 0)
    // New clusters may be counted in blocks that have not changed so far; few rounds are needed.
    while book.changed.count > moved.count {
      for index in book.changed.sorted() where moved[index] == nil {
        moved[index] = try allocate(1)
        if index < book.places.count, book.places[index] != 0 { try book.add(-1, at: book.places[index]) }
      }
      guard book.changed.count == moved.count else { continue }
      let needed = max(UInt64(header.refcountTableClusters), (UInt64(book.blockCount) * 8 + clusterSize - 1) / clusterSize)
      guard needed * clusterSize <= max(Qcow2Limits.refcountTable, clusterSize) else { throw .isFull }
      guard needed > clusters else { continue }
      // The table was too short: the clusters that were allocated for it remain a hole without a refcount.
      if clusters > 0 { try book.add(-1, at: place, bytes: clusters * clusterSize) }
      (place, clusters) = (try allocate(needed), needed)
    }
    var bytes = [UInt8](repeating: 0, count: Int(clusters * clusterSize))
    for (index, old) in book.places.enumerated() where old != 0 { bytes.put64(old, at: index * 8) }
    for (index, new) in moved.sorted(by: { $0.key < $1.key }) {
      bytes.put64(new, at: index * 8)
      try put(ImageStore(.refcountBlock, new, book.bytes(index)))
    }
    try put(ImageStore(.refcountTable, place, bytes))
    return (place, clusters)
  }

  /// The bytes of the file that are free once the change is stable. Must be called before any hole is punched.
  public func freed() throws(Qcow2Fault) -> [Range<UInt64>] {
    try book.freed().map { $0.lowerBound * clusterSize..<$0.upperBound * clusterSize }
  }
}
