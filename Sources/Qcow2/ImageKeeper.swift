/// Keeps the metadata of an image that is written to: which clusters are counted, where tables are, what has to be stored for a change.
///
/// A pure value: it is told facts and answers stores, and does no I/O. Whoever cannot carry out what a mutating method answered goes on
/// with the value from before, and the same question gets the same answer.
///
/// Three rules make an image whole whenever the power goes:
/// 1. Clusters are counted in runs, and that is stable before the first of them is used. What was counted and is not used is a leak, which
///    costs a hole in a file.
/// 2. A cluster is taken past the end of what the file had, never from within it. So it is a hole that nobody points at, and reads as
///    zeroes until something is stored there.
/// 3. No cluster is freed or moved while the image is open. What lost its last pointer is counted down when that is stable, and used again
///    only by whoever opens the image next.
public struct ImageKeeper: Sendable {
  public let geometry: Qcow2Geometry
  public let refcountOrder: UInt32
  /// Bytes of the file when it was opened, in whole clusters. What lies below was somebody's; what lies above is ours.
  public let firstEnd: UInt64
  /// Clusters below are counted or in the file; above there is nothing.
  private(set) var end: UInt64
  /// Counted, and nobody's.
  private var free: [Range<UInt64>] = []
  /// Counted, and not to be used: something may be in them.
  private var spoiled: [UInt64] = []
  /// Where the refcount blocks are; as many as the table has entries. 0: there is none.
  private var blockPlaces: [UInt64]
  private var tableOffset: UInt64
  private var tableClusters: UInt64
  /// Those that were needed.
  private var blocks: [Int: [UInt8]] = [:]
  /// Entries of the L1 table as they are in the file.
  private var level1: [UInt64]
  private let level1Offset: UInt64
  /// Clusters of metadata: nothing else is stored there, and no metadata is stored elsewhere.
  public private(set) var metadata: Set<UInt64> = []
  /// Clusters that lost pointers, and how many.
  private var dropped: [UInt64: UInt64] = [:]
  private var incompatible: Qcow2Header.Incompatible
  private var autoclear: UInt64
  private let version: UInt32

  /// - Parameter source: the image's file as it is; nothing of it changes but by what is answered here.
  /// - Throws: the image is none that could be written to.
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
    let (snapshots, tableBytes) = try header.snapshotTable(source)
    if tableBytes > 0 { try add(.snapshotTable, header.snapshotOffset, bytes: tableBytes) }
    for snapshot in snapshots {
      // Snapshots may share nothing with the disk but data and L2 tables.
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

  /// L2 tables that snapshots have, which they may share with the disk and with each other, also those of a machine's state past the end
  /// of the disk.
  ///
  /// - Parameter tables: places of L2 tables that are known already.
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

  /// Blocks in which new clusters will be counted, as far as they are there.
  private mutating func readLastBlocks(_ source: some ImageSource) throws(Qcow2Fault) {
    let last = Int(clamping: end / perBlock)
    // What was counted ahead and given back leaves its blocks, with nothing in them: as many as the largest run has.
    let most = Self.lastBlocks + Int(Self.ahead / (perBlock * geometry.clusterSize))
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
      // What is counted past the end of the file stays as it is.
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

  /// Blocks past the end of the file that are read when it is opened, besides those of clusters that were counted ahead.
  private static let lastBlocks = 64

  /// Bytes that may have been counted ahead: more than any run.
  private static let ahead: UInt64 = 128 << 20

  /// Entries of all snapshots' L1 tables that are looked at.
  private static let mostEntries: UInt64 = 1 << 24

  /// Clusters of metadata that are kept in mind: a sparse file may say that it has any number.
  private static let mostMetadata = 1 << 22

  /// Counts in a block.
  private var perBlock: UInt64 { (geometry.clusterSize * 8) >> UInt64(refcountOrder) }

  // MARK: The header

  /// What has to be stored before anything else is.
  public mutating func begin() -> StorePlan {
    guard version >= 3, autoclear != 0 else { return StorePlan() }
    // Features that a writer who does not know them has made stale, bitmaps among them.
    autoclear = 0
    return StorePlan(groups: [[ImageStore(.header, 88, Self.word(autoclear))]])
  }

  /// The image contradicts itself: nobody writes to it before it is repaired.
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

  /// Takes a cluster that is counted, a hole of the file.
  ///
  /// - Returns: where it is, bytes; `nil`: none is left, and more are to be counted by `grow`.
  public mutating func claim() -> UInt64? {
    guard let first = free.first else { return nil }
    let cluster = first.lowerBound
    if first.count == 1 { free.removeFirst() } else { free[0] = cluster + 1..<first.upperBound }
    return cluster * geometry.clusterSize
  }

  /// Whether a cluster is counted that nobody has.
  public var hasFree: Bool { !free.isEmpty }

  /// A cluster that was claimed is nobody's, after all. Something may have been stored in it, so that it is not used again.
  public mutating func abandon(_ place: UInt64) {
    metadata.remove(place / geometry.clusterSize)
    spoiled.append(place / geometry.clusterSize)
  }

  /// A cluster that was adopted may be a table or none: saying so failed, which may have been carried out. It stays counted.
  public mutating func leak(_ place: UInt64) { metadata.remove(place / geometry.clusterSize) }

  /// Counts clusters past the end, and what it takes to count them: refcount blocks, and a larger table.
  ///
  /// - Parameter wanted: clusters that there will be at least; above 0.
  /// - Throws: `isFull`.
  public mutating func grow(by wanted: UInt64) throws(Qcow2Fault) -> StorePlan {
    let size = geometry.clusterSize
    let start = end
    var (blockCount, newTable): (UInt64, UInt64) = (0, 0)
    var last = start
    // What is added has to be counted, too: each round adds what the one before lacked, and few are needed.
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
      // A table that nobody knows yet, and then the one word that makes it known.
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
      // A block is stable before the table has it: else what it counts would be 0 for a moment, itself first of all.
      let entries = news.map { ImageStore(.refcountTable, tableOffset + UInt64($0) * 8, Self.word(blockPlaces[$0])) }
      if !entries.isEmpty { plan.groups.append(entries) }
    }
    return plan
  }

  /// - Parameter news: blocks that are stored as a whole anyway.
  /// - Returns: what has changed in the others.
  private mutating func count(_ clusters: Range<UInt64>, as value: UInt64, besides news: Set<Int> = []) -> [ImageStore] {
    var stores: [ImageStore] = []
    var cluster = clusters.lowerBound
    while cluster < clusters.upperBound {
      let index = Int(cluster / perBlock)
      let stop = min(clusters.upperBound, (UInt64(index) + 1) * perBlock)
      let (from, to) = (Int(cluster % perBlock), Int((stop - 1) % perBlock))
      defer { cluster = stop }
      guard var bytes = blocks[index] else { continue }
      // In its place in the dictionary it would be copied.
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

  /// What the file's L1 table says.
  public func level1Entry(_ index: Int) -> (place: UInt64, isOwn: Bool) {
    (level1[index] & Qcow2Entries.offsetMask, level1[index] & Qcow2Entries.copied != 0)
  }

  /// A cluster that was claimed is to become an L2 table. What it has must be stable before what is answered is stored, unless it is a
  /// hole. Then `setLevel1` is due, or `abandon`.
  public mutating func adopt(_ place: UInt64, _ index: Int) -> ImageStore {
    metadata.insert(place / geometry.clusterSize)
    return ImageStore(.level1, level1Offset + UInt64(index) * 8, Self.word(place | Qcow2Entries.copied))
  }

  /// The L1 table's entry was stored.
  public mutating func setLevel1(_ index: Int, _ place: UInt64) {
    let old = level1[index] & Qcow2Entries.offsetMask
    if old != 0 {
      // Another L1 table, a snapshot's, has it still.
      metadata.remove(old / geometry.clusterSize)
      dropped[old / geometry.clusterSize, default: 0] += 1
    }
    level1[index] = place | Qcow2Entries.copied
  }

  /// An entry of an L2 table.
  public func entryStore(_ offset: UInt64, _ entry: UInt64, _ bitmap: UInt64) -> ImageStore? {
    let (place, isOwn) = level1Entry(geometry.level1Index(offset))
    guard place != 0, isOwn else { return nil }
    let bytes = Self.word(entry) + (geometry.isExtended ? Self.word(bitmap) : [])
    return ImageStore(.level2, place + UInt64(geometry.level2Index(offset) * geometry.entryBytes), bytes)
  }

  /// Whether all of a store is where metadata of ours is. Asked before each is carried out.
  public func mayStore(_ store: ImageStore) -> Bool {
    guard !store.bytes.isEmpty else { return true }
    let (end, isTooLarge) = store.offset.addingReportingOverflow(UInt64(store.bytes.count) - 1)
    guard !isTooLarge else { return false }
    return (store.offset / geometry.clusterSize...end / geometry.clusterSize).allSatisfy(metadata.contains)
  }

  // MARK: What lost its pointer

  /// A pointer at these bytes was replaced.
  public mutating func drop(_ place: UInt64, bytes: UInt64) {
    guard bytes > 0 else { return }
    let size = geometry.clusterSize
    for cluster in place / size...(place + bytes - 1) / size { dropped[cluster, default: 0] += 1 }
  }

  public var hasDropped: Bool { !dropped.isEmpty }

  /// Takes what was dropped so far. It may be settled when everything that was stored before is stable.
  public mutating func takeDropped() -> [UInt64: UInt64] {
    defer { dropped = [:] }
    return dropped
  }

  /// Refcount blocks that have to be read before these can be settled: numbers and places.
  public func blocksNeeded(for dropped: [UInt64: UInt64]) -> [(index: Int, place: UInt64)] {
    Set(dropped.keys.map { Int(clamping: $0 / perBlock) }).sorted().compactMap { index in
      guard blocks[index] == nil, index < blockPlaces.count, blockPlaces[index] != 0 else { return nil }
      return (index, blockPlaces[index])
    }
  }

  /// - Parameter bytes: a cluster.
  public mutating func supply(_ bytes: [UInt8], block index: Int) {
    guard blocks[index] == nil, bytes.count == Int(geometry.clusterSize) else { return }
    blocks[index] = bytes
  }

  /// Counts down. What is answered may be stored in any order, and need not be.
  public mutating func settle(_ dropped: [UInt64: UInt64]) -> [ImageStore] {
    var stores: [ImageStore] = []
    for (cluster, times) in dropped.sorted(by: { $0.key < $1.key }) {
      // An entry that said that metadata is its data does not take it away.
      guard !metadata.contains(cluster) else { continue }
      let index = Int(clamping: cluster / perBlock)
      guard let bytes = blocks[index] else { continue }
      let now = Qcow2Refcounts<MemorySource>.entry(Int(cluster % perBlock), order: refcountOrder, bytes)
      stores += count(cluster..<cluster + 1, as: now - min(now, times))
    }
    return stores
  }

  // MARK: The end

  /// Gives back what is counted and nobody's. Nothing points there, so the order is of no importance.
  ///
  /// - Returns: what to store, and how long the file may be cut; `nil`: it stays as long as it is.
  public mutating func finish() -> (stores: [ImageStore], length: UInt64?) {
    let unused = free + spoiled.map { $0..<$0 + 1 }
    (free, spoiled) = ([], [])
    let stores = unused.flatMap { count($0, as: 0) }
    let full = end
    for range in unused.sorted(by: { $0.upperBound > $1.upperBound }) where range.upperBound == end { end = range.lowerBound }
    return (stores, end == full ? nil : end * geometry.clusterSize)
  }
}
