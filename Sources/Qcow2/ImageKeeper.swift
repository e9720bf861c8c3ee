/// Keeps the metadata of an image that is written to: which clusters have a refcount, where tables are, and what has to be
/// stored for a change.
///
/// A pure value: facts go in, stores come out, and it does no I/O. A caller that cannot execute the stores that a mutating
/// method returned continues with the previous value, which then returns the same again.
///
/// Three rules keep an image consistent through a power failure at any moment:
/// 1. Refcounts are set for runs of clusters, and are stable before the first cluster of a run is used. A cluster that has a
///    refcount and is not used is leaked, which costs only a hole in the file.
/// 2. New clusters are allocated beyond the end that the file had, never inside it. So a new cluster is a hole that nothing
///    points at, and reads as zeroes until something is stored there.
/// 3. No cluster is freed or moved while the image is open. The refcount of a cluster that lost a pointer is decremented
///    once that is stable, and a free cluster is reused only after the image was opened again.
public struct ImageKeeper: Sendable {
  public let geometry: Qcow2Geometry
  public let refcountOrder: UInt32
  /// The length of the file when it was opened, bytes, in whole clusters. Everything below may have contents; everything above
  /// was allocated since.
  public let firstEnd: UInt64
  /// The first cluster beyond the file and beyond all refcounts.
  private(set) var end: UInt64
  /// Clusters that have a refcount and are free for use.
  private var free: [Range<UInt64>] = []
  /// Clusters that have a refcount and must not be used, because they may have contents.
  private var spoiled: [UInt64] = []
  /// Offsets of the refcount blocks, one for each entry of the table; 0: no block.
  private var blockPlaces: [UInt64]
  private var tableOffset: UInt64
  private var tableClusters: UInt64
  /// Refcount blocks that have been read.
  private var blocks: [Int: [UInt8]] = [:]
  /// Entries of the L1 table, as in the file.
  private var level1: [UInt64]
  private let level1Offset: UInt64
  /// Clusters of metadata: nothing else is ever stored there, and no metadata is stored elsewhere.
  public private(set) var metadata: Set<UInt64> = []
  /// Clusters that lost pointers, each with the number of pointers.
  private var dropped: [UInt64: UInt64] = [:]
  private var incompatible: Qcow2Header.Incompatible
  private var autoclear: UInt64
  private let version: UInt32

  /// - Parameter source: the file of the image; it changes only by the stores that this value returns.
  /// - Throws: why the image cannot be written to.
  public init(_ header: Qcow2Header, _ source: some ImageSource) throws(Qcow2Fault) {
    guard !header.incompatible.contains(.corrupt) else { throw .isCorrupt }
    guard !header.incompatible.contains(.dirty) else { throw .isDirty }
    guard !header.hasDataFile else { throw .externalData }
    geometry = header.geometry
    refcountOrder = header.refcountOrder
    version = header.version
    incompatible = header.incompatible
    autoclear = header.autoclear
    level1Offset = header.level1Offset
    tableOffset = header.refcountTableOffset
    tableClusters = UInt64(header.refcountTableClusters)
    guard let length = source.byteCount.rounded(up: header.clusterSize), length < Qcow2Limits.offset else {
      throw .pastEnd(.data, offset: source.byteCount)
    }
    firstEnd = length
    end = length / header.clusterSize
    let table = try Qcow2Refcounts(source, header)
    blockPlaces = table.blocks
    let needed = Int(header.geometry.level1Entries(for: header.size))
    let bytes = needed == 0 ? [] : try source.need(.level1, at: header.level1Offset, count: needed * 8)
    level1 = (0..<needed).map { bytes.word64($0 * 8) }

    try add(.header, 0, bytes: header.clusterSize)
    try add(.level1, header.level1Offset, bytes: header.level1Entries * 8)
    try add(.refcountTable, tableOffset, bytes: tableClusters * header.clusterSize)
    for place in blockPlaces where place != 0 {
      guard Qcow2Refcounts<MemorySource>.isPlace(place, header, source.byteCount) else {
        throw .misplaced(.refcountBlock, offset: place)
      }
      try add(.refcountBlock, place, bytes: header.clusterSize)
    }
    var tables: Set<UInt64> = []
    for place in try header.level1(source) where place != 0 {
      try add(.level2, place, bytes: header.clusterSize)
      tables.insert(place)
    }
    let listed = try header.snapshotTable(source)
    let snapshots = listed.entries.map(\.snapshot)
    try add(.snapshotTable, header.snapshotOffset, bytes: listed.storedBytes)
    for snapshot in snapshots {
      // Snapshots may share only data and L2 tables with the disk.
      try add(.snapshotLevel1, snapshot.level1Offset, bytes: snapshot.level1Entries * 8)
    }
    try addTables(of: snapshots, header, source, &tables)
    try readLastBlocks(source)
  }

  private mutating func add(_ part: Qcow2Fault.Part, _ offset: UInt64, bytes: UInt64) throws(Qcow2Fault) {
    guard bytes > 0 else { return }
    let size = geometry.clusterSize
    for cluster in offset / size...(offset + bytes - 1) / size {
      guard metadata.count < Self.mostMetadata else { throw .tooManyTables }
      guard metadata.insert(cluster).inserted else { throw .overlapsMetadata(part, offset: cluster * size) }
    }
  }

  /// L2 tables of snapshots, which may be shared with the disk and between snapshots, including those for a saved machine
  /// state beyond the end of the disk.
  ///
  /// - Parameter tables: offsets of the L2 tables that are already known.
  private mutating func addTables(
    of snapshots: [Qcow2Snapshot], _ header: Qcow2Header, _ source: some ImageSource, _ tables: inout Set<UInt64>
  ) throws(Qcow2Fault) {
    let entries = Qcow2Entries(header)
    var looked: UInt64 = 0
    for snapshot in snapshots where snapshot.level1Entries > 0 {
      looked += snapshot.level1Entries
      guard looked <= Self.mostEntries else { throw .tooManyTables }
      let bytes = try source.need(.snapshotLevel1, at: snapshot.level1Offset, count: Int(snapshot.level1Entries) * 8)
      for index in 0..<Int(snapshot.level1Entries) {
        guard let place = try entries.level1(bytes.word64(index * 8)), tables.insert(place).inserted else { continue }
        guard place < source.byteCount else { throw .pastEnd(.level2, offset: place) }
        try add(.level2, place, bytes: header.clusterSize)
      }
    }
  }

  /// Reads the refcount blocks for new clusters, as far as they exist.
  private mutating func readLastBlocks(_ source: some ImageSource) throws(Qcow2Fault) {
    let last = Int(clamping: end / perBlock)
    let most = Self.mostBlocksAhead(perBlock: perBlock, geometry.clusterSize)
    var loaded = 0
    var index = last
    while index < blockPlaces.count {
      defer { index += 1 }
      guard blockPlaces[index] != 0 else { continue }
      loaded += 1
      guard loaded <= most else { throw .countsPastEnd }
      var bytes: [UInt8]
      do { bytes = try source.read(at: blockPlaces[index], count: Int(geometry.clusterSize)) } catch {
        throw .cannotRead(error)
      }
      bytes += [UInt8](repeating: 0, count: Int(geometry.clusterSize) - bytes.count)
      // Refcounts beyond the end of the file are kept.
      for entry in (0..<Int(perBlock)).reversed() {
        let cluster = UInt64(index) * perBlock + UInt64(entry)
        guard cluster >= end else { break }
        if Qcow2Refcounts<MemorySource>.entry(entry, order: refcountOrder, bytes) != 0 {
          end = cluster + 1
          break
        }
      }
      blocks[index] = bytes
    }
  }

  /// How many refcount blocks for clusters beyond the end of the file are examined. Refcounts that were set in advance and
  /// cleared again leave empty blocks behind: at most as many as the largest run needs.
  static func mostBlocksAhead(perBlock: UInt64, _ clusterSize: UInt64) -> Int {
    lastBlocks + Int(ahead / (perBlock * clusterSize))
  }

  /// How many refcount blocks for clusters beyond the end of the file are read when it is opened, besides those for runs.
  private static let lastBlocks = 64

  /// An upper bound for what may have a refcount in advance, bytes: more than any run.
  private static let ahead: UInt64 = 128 << 20

  /// How many entries of the snapshots' L1 tables are examined.
  private static let mostEntries: UInt64 = 1 << 24

  /// How many clusters of metadata are tracked: a sparse file may claim any number.
  private static let mostMetadata = 1 << 22

  /// Refcounts per block.
  private var perBlock: UInt64 { (geometry.clusterSize * 8) >> UInt64(refcountOrder) }

  // MARK: The header

  /// The stores that come before all others.
  public mutating func begin() -> StorePlan {
    guard version >= 3, autoclear != 0 else { return StorePlan() }
    // Autoclear features become stale if a writer does not maintain them: bitmaps, for instance.
    autoclear = 0
    return StorePlan(groups: [[ImageStore(.header, 88, Self.word(autoclear))]])
  }

  /// Marks the image as inconsistent: no program may write to it before it is repaired.
  public mutating func markCorrupt() -> StorePlan {
    guard version >= 3, !incompatible.contains(.corrupt) else { return StorePlan() }
    incompatible.insert(.corrupt)
    return StorePlan(groups: [[ImageStore(.header, 72, Self.word(incompatible.rawValue))]])
  }

  private static func word(_ value: UInt64) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 8)
    bytes.put64(value, at: 0)
    return bytes
  }

  // MARK: Clusters

  /// Takes a cluster that has a refcount and is a hole in the file.
  ///
  /// - Returns: its offset, bytes; `nil`: none is left, so `grow` has to provide more.
  public mutating func claim() -> UInt64? {
    guard let first = free.first else { return nil }
    let cluster = first.lowerBound
    if first.count == 1 { free.removeFirst() } else { free[0] = cluster + 1..<first.upperBound }
    return cluster * geometry.clusterSize
  }

  /// Whether there is a free cluster with a refcount.
  public var hasFree: Bool { !free.isEmpty }

  /// Gives up a claimed cluster. It may have contents by now, so it is not claimed again.
  public mutating func abandon(_ place: UInt64) {
    metadata.remove(place / geometry.clusterSize)
    spoiled.append(place / geometry.clusterSize)
  }

  /// Leaks a cluster that was adopted and may or may not be a table, because the store that points at it failed, but may have
  /// been executed. It keeps its refcount.
  public mutating func leak(_ place: UInt64) { metadata.remove(place / geometry.clusterSize) }

  /// Sets refcounts for clusters beyond the end, and adds the refcount blocks and the larger refcount table that this needs.
  ///
  /// - Parameter wanted: the least number of clusters to provide; above 0.
  /// - Throws: `isFull`.
  public mutating func grow(by wanted: UInt64) throws(Qcow2Fault) -> StorePlan {
    let size = geometry.clusterSize
    let start = end
    var (blockCount, newTable): (UInt64, UInt64) = (0, 0)
    var last = start
    // The new blocks and tables need refcounts, too: each round adds what the previous one lacked, and few rounds are needed.
    while true {
      last = start + wanted + blockCount + newTable
      guard last < Qcow2Limits.offset / size / 2 else { throw .isFull }
      let lastIndex = (last - 1) / perBlock
      let missing = (start / perBlock...lastIndex).count { $0 >= blockPlaces.count || blockPlaces[Int($0)] == 0 }
      var table: UInt64 = 0
      if lastIndex >= blockPlaces.count {
        let most = Qcow2Limits.refcountTable
        guard (lastIndex + 1) * 8 <= most else { throw .isFull }
        table = (min((lastIndex + 1) * 12, most) + size - 1) / size
      }
      if missing <= blockCount, table <= newTable { break }
      blockCount = max(blockCount, UInt64(missing))
      newTable = max(newTable, table)
    }
    end = last
    var next = start
    let old = (offset: tableOffset, clusters: tableClusters)
    if newTable > 0 {
      (tableOffset, tableClusters) = (next * size, newTable)
      for cluster in next..<next + newTable { metadata.insert(cluster) }
      next += newTable
      blockPlaces += [UInt64](repeating: 0, count: Int(newTable * size / 8) - blockPlaces.count)
    }
    var news: [Int] = []
    for index in Int(start / perBlock)...Int((last - 1) / perBlock) where blockPlaces[index] == 0 {
      blockPlaces[index] = next * size
      metadata.insert(next)
      blocks[index] = [UInt8](repeating: 0, count: Int(size))
      news.append(index)
      next += 1
    }
    if next < last { free.append(next..<last) }
    var first = count(start..<last, as: 1, besides: Set(news))
    first += news.map { ImageStore(.refcountBlock, blockPlaces[$0], blocks[$0] ?? []) }

    var plan = StorePlan(length: last * size)
    if newTable > 0 {
      // First a table that nothing points at yet, then the words that point at it.
      var bytes = [UInt8](repeating: 0, count: blockPlaces.count * 8)
      for (index, place) in blockPlaces.enumerated() where place != 0 { bytes.put64(place, at: index * 8) }
      first.append(ImageStore(.refcountTable, tableOffset, bytes))
      var word = Self.word(tableOffset) + [0, 0, 0, 0]
      word.put32(UInt32(tableClusters), at: 8)
      plan.groups = [first, [ImageStore(.header, 48, word)]]
      for cluster in old.offset / size..<old.offset / size + old.clusters {
        metadata.remove(cluster)
        dropped[cluster, default: 0] += 1
      }
    } else {
      plan.groups = [first]
      // A block must be stable before the table points at it: otherwise its refcounts, its own among them, would be 0 for a
      // moment.
      let entries = news.map { ImageStore(.refcountTable, tableOffset + UInt64($0) * 8, Self.word(blockPlaces[$0])) }
      if !entries.isEmpty { plan.groups.append(entries) }
    }
    return plan
  }

  /// Sets the refcounts of clusters. - Parameter news: blocks that are stored as a whole anyway.
  /// - Returns: stores for the other blocks.
  private mutating func count(_ clusters: Range<UInt64>, as value: UInt64, besides news: Set<Int> = []) -> [ImageStore] {
    var stores: [ImageStore] = []
    var cluster = clusters.lowerBound
    while cluster < clusters.upperBound {
      let index = Int(cluster / perBlock)
      let stop = min(clusters.upperBound, (UInt64(index) + 1) * perBlock)
      let (from, to) = (Int(cluster % perBlock), Int((stop - 1) % perBlock))
      defer { cluster = stop }
      guard var bytes = blocks[index] else { continue }
      // Taken out of the dictionary, because it would be copied if it were modified there.
      blocks[index] = nil
      for entry in from...to { Qcow2Refcounts<MemorySource>.put(value, entry, order: refcountOrder, &bytes) }
      if !news.contains(index) {
        let range = (from << Int(refcountOrder)) / 8...((to << Int(refcountOrder)) + (1 << Int(refcountOrder)) - 1) / 8
        stores.append(ImageStore(.refcountBlock, blockPlaces[index] + UInt64(range.lowerBound), Array(bytes[range])))
      }
      blocks[index] = bytes
    }
    return stores
  }

  // MARK: Tables

  /// An entry of the file's L1 table.
  public func level1Entry(_ index: Int) -> (place: UInt64, isOwn: Bool) {
    (level1[index] & Qcow2Entries.offsetMask, level1[index] & Qcow2Entries.copied != 0)
  }

  /// A claimed cluster becomes an L2 table. Its contents must be stable before the returned stores, unless it is a hole.
  /// `setLevel1` or `abandon` has to follow.
  public mutating func adopt(_ place: UInt64, _ index: Int) -> ImageStore {
    metadata.insert(place / geometry.clusterSize)
    return ImageStore(.level1, level1Offset + UInt64(index) * 8, Self.word(place | Qcow2Entries.copied))
  }

  /// The entry of the L1 table was stored.
  public mutating func setLevel1(_ index: Int, _ place: UInt64) {
    let old = level1[index] & Qcow2Entries.offsetMask
    if old != 0 {
      // The L1 table of a snapshot still points at it.
      metadata.remove(old / geometry.clusterSize)
      dropped[old / geometry.clusterSize, default: 0] += 1
    }
    level1[index] = place | Qcow2Entries.copied
  }

  /// The store of an entry of an L2 table; `nil` if the disk has no unshared table for it.
  public func entryStore(_ offset: UInt64, _ entry: UInt64, _ bitmap: UInt64) -> ImageStore? {
    let (place, isOwn) = level1Entry(geometry.level1Index(offset))
    guard place != 0, isOwn else { return nil }
    let bytes = Self.word(entry) + (geometry.isExtended ? Self.word(bitmap) : [])
    return ImageStore(.level2, place + UInt64(geometry.level2Index(offset) * geometry.entryBytes), bytes)
  }

  /// Whether a store lies entirely in known metadata. Checked before each store.
  public func mayStore(_ store: ImageStore) -> Bool {
    guard !store.bytes.isEmpty else { return true }
    let (end, isTooLarge) = store.offset.addingReportingOverflow(UInt64(store.bytes.count) - 1)
    guard !isTooLarge else { return false }
    return (store.offset / geometry.clusterSize...end / geometry.clusterSize).allSatisfy(metadata.contains)
  }

  // MARK: Lost pointers

  /// A pointer at these bytes was replaced.
  public mutating func drop(_ place: UInt64, bytes: UInt64) {
    guard bytes > 0 else { return }
    let size = geometry.clusterSize
    for cluster in place / size...(place + bytes - 1) / size { dropped[cluster, default: 0] += 1 }
  }

  public var hasDropped: Bool { !dropped.isEmpty }

  /// Takes the dropped pointers so far. They may be settled once everything stored before is stable.
  public mutating func takeDropped() -> [UInt64: UInt64] {
    defer { dropped = [:] }
    return dropped
  }

  /// Refcount blocks that have to be read before these can be settled: numbers and offsets.
  public func blocksNeeded(for dropped: [UInt64: UInt64]) -> [(index: Int, place: UInt64)] {
    Set(dropped.keys.map { Int(clamping: $0 / perBlock) }).sorted().compactMap { index in
      guard blocks[index] == nil, index < blockPlaces.count, blockPlaces[index] != 0 else { return nil }
      return (index, blockPlaces[index])
    }
  }

  /// Provides a refcount block that was read. - Parameter bytes: a whole cluster.
  public mutating func supply(_ bytes: [UInt8], block index: Int) {
    guard blocks[index] == nil, bytes.count == Int(geometry.clusterSize) else { return }
    blocks[index] = bytes
  }

  /// Decrements refcounts. The returned stores may be executed in any order, or not at all.
  public mutating func settle(_ dropped: [UInt64: UInt64]) -> [ImageStore] {
    var stores: [ImageStore] = []
    for (cluster, times) in dropped.sorted(by: { $0.key < $1.key }) {
      // A corrupt entry that pointed at metadata must not free it.
      guard !metadata.contains(cluster) else { continue }
      let index = Int(clamping: cluster / perBlock)
      guard let bytes = blocks[index] else { continue }
      let now = Qcow2Refcounts<MemorySource>.entry(Int(cluster % perBlock), order: refcountOrder, bytes)
      stores += count(cluster..<cluster + 1, as: now - min(now, times))
    }
    return stores
  }

  // MARK: The end

  /// Releases free clusters that have a refcount. Nothing points at them, so the order does not matter.
  ///
  /// - Returns: the stores, and the length to which the file may be truncated; `nil`: its length stays.
  public mutating func finish() -> (stores: [ImageStore], length: UInt64?) {
    let unused = free + spoiled.map { $0..<$0 + 1 }
    (free, spoiled) = ([], [])
    let stores = unused.flatMap { count($0, as: 0) }
    let full = end
    for range in unused.sorted(by: { $0.upperBound > $1.upperBound }) where range.upperBound == end { end = range.lowerBound }
    return (stores, end == full ? nil : end * geometry.clusterSize)
  }
}
