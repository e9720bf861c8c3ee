/// Checks the consistency of an image: the refcount of every cluster has to equal the number of its uses.

/// The result of a check.
public struct Qcow2Report: Hashable, Sendable {
  /// One line each, in qemu-img's words; the first thousand.
  public internal(set) var findings: [String] = []
  /// Faults that may cost data, now or with the next write.
  public internal(set) var corruptions = 0
  /// Clusters with a refcount above their number of uses: wasted space, but harmless.
  public internal(set) var leaks = 0
  /// Parts that could not be examined.
  public internal(set) var failures = 0
  /// Clusters of the disk; of these, those that are allocated, and those that are compressed.
  public internal(set) var totalClusters: UInt64 = 0
  public internal(set) var allocatedClusters: UInt64 = 0
  public internal(set) var compressedClusters: UInt64 = 0
  /// The end of the last cluster that has a refcount, bytes.
  public internal(set) var imageEnd: UInt64 = 0

  private static let lines = 1000

  public var isClean: Bool { corruptions == 0 && leaks == 0 && failures == 0 }

  mutating func corrupt(_ line: @autoclosure () -> String) {
    corruptions += 1
    say(line())
  }

  mutating func fail(_ line: @autoclosure () -> String) {
    failures += 1
    say(line())
  }

  mutating func leak(_ line: @autoclosure () -> String) {
    leaks += 1
    say(line())
  }

  private mutating func say(_ line: @autoclosure () -> String) {
    guard findings.count < Self.lines else { return }
    findings.append(line())
  }
}

public struct Qcow2Check<Source: ImageSource> {
  private let source: Source
  private let header: Qcow2Header
  private let entries: Qcow2Entries
  private var refcounts: Qcow2Refcounts<Source>
  private var counts = ClusterCounts()
  /// Clusters that must have exactly one use.
  private var single: [UInt64: Qcow2Fault.Part] = [:]
  /// How many L2 tables may still be walked, large ones counting as several: our own bound, whatever snapshots claim.
  private var patience = 1 << 22
  /// How many entries of L1 tables and bitmaps may still be examined: thousands of snapshots may refer to the same few
  /// megabytes.
  private var budget: UInt64
  private var report = Qcow2Report()

  private init(_ source: Source, _ header: Qcow2Header, _ budget: UInt64) throws(Qcow2Fault) {
    (self.source, self.header, self.budget) = (source, header, budget)
    entries = Qcow2Entries(header)
    refcounts = try Qcow2Refcounts(source, header)
  }

  /// - Parameter budget: how many entries of L1 tables and bitmaps are examined at most; anything left out is reported as a
  ///   failure.
  /// - Throws: it is not an image that can be examined.
  public static func run(
    _ source: Source, _ header: Qcow2Header, budget: UInt64 = 1 << 28
  ) throws(Qcow2Fault) -> Qcow2Report {
    var check = try Self(source, header, budget)
    check.walk()
    check.compare()
    return check.report
  }

  // MARK: What is in use

  private mutating func walk() {
    let size = header.clusterSize
    report.totalClusters = (header.size / size) + (header.size % size == 0 ? 0 : 1)
    use(.header, 0, bytes: size, isSingle: true)
    use(.level1, header.level1Offset, bytes: header.level1Entries * 8, isSingle: true)
    use(.refcountTable, header.refcountTableOffset, bytes: UInt64(header.refcountTableClusters) * size, isSingle: true)
    walk(.level1, at: header.level1Offset, entries: header.level1Entries, isActive: true)
    do throws(Qcow2Fault) {
      let table = try header.snapshotTable(source)
      use(.snapshotTable, header.snapshotOffset, bytes: table.storedBytes, isSingle: true)
      for snapshot in table.entries.map(\.snapshot) {
        guard spend(snapshot.level1Entries, on: "L1 tables of snapshots") else { break }
        use(.snapshotLevel1, snapshot.level1Offset, bytes: snapshot.level1Entries * 8, isSingle: false)
        walk(.snapshotLevel1, at: snapshot.level1Offset, entries: snapshot.level1Entries, isActive: false)
      }
    } catch { report.corrupt("ERROR snapshots: \(error)") }
    if let bitmaps = header.bitmaps { walk(bitmaps) }
    walkBlocks()
  }

  /// - Returns: false, after reporting it, if there are more than can be examined.
  private mutating func spend(_ entries: UInt64, on what: String) -> Bool {
    guard entries < budget else {
      report.fail("ERROR the \(what) have more entries than are examined")
      return false
    }
    budget -= entries + 1
    return true
  }

  /// Counts a use of the clusters of a part. They have to be in the file; the last one may be incomplete.
  private mutating func use(_ part: Qcow2Fault.Part, _ offset: UInt64, bytes: UInt64, isSingle: Bool) {
    guard bytes > 0 else { return }
    let size = header.clusterSize
    // The last cluster of the file may be incomplete. Every offset is below 2^57 from here on.
    let (end, isTooLarge) = offset.addingReportingOverflow(bytes)
    guard offset < Qcow2Limits.offset, !isTooLarge, end <= source.byteCount.rounded(up: size) ?? .max else {
      return report.corrupt("ERROR \(part.rawValue) at \(offset) exceeds the end of the file")
    }
    var cluster = offset / size
    while cluster * size < end {
      counts.add(cluster)
      if isSingle, single[cluster] == nil { single[cluster] = part }
      cluster += 1
    }
  }

  private mutating func walk(_ part: Qcow2Fault.Part, at offset: UInt64, entries count: UInt64, isActive: Bool) {
    guard count > 0 else { return }
    let table: [UInt8]
    do throws(Qcow2Fault) { table = try source.need(part, at: offset, count: Int(count) * 8) } catch {
      return report.fail("ERROR \(part.rawValue): \(error)")
    }
    for index in 0..<Int(count) {
      let entry = table.word64(index * 8)
      do throws(Qcow2Fault) {
        guard let level2 = try entries.level1(entry) else { continue }
        use(.level2, level2, bytes: header.clusterSize, isSingle: false)
        if isActive { checkCopied("L2 cluster: l1_index=\(index)", level2, entry) }
        patience -= max(1, Int(header.geometry.level2Entries >> 13))
        guard patience > 0 else { return report.fail("ERROR there are more L2 tables than are examined") }
        walkLevel2(level2, isActive: isActive)
      } catch { report.corrupt("ERROR l1_index=\(index): \(error)") }
    }
  }

  private mutating func walkLevel2(_ offset: UInt64, isActive: Bool) {
    guard offset < source.byteCount else { return }
    let size = Int(header.clusterSize)
    guard var table = try? source.read(at: offset, count: size) else {
      return report.fail("ERROR the L2 table at \(offset) cannot be read")
    }
    table += [UInt8](repeating: 0, count: size - table.count)
    let bytes = header.geometry.entryBytes
    for start in stride(from: 0, to: size, by: bytes) {
      let entry = table.word64(start)
      let bitmap = bytes == 16 ? table.word64(start + 8) : 0
      // True of most entries of most tables.
      if entry == 0, bitmap == 0 { continue }
      do throws(Qcow2Fault) {
        let cluster = try entries.level2(entry, bitmap: bitmap)
        if isActive, entry & Qcow2Entries.compressed != 0, entry & Qcow2Entries.copied != 0 {
          report.corrupt("ERROR OFLAG_COPIED compressed cluster: l2_entry=\(String(entry, radix: 16))")
        }
        take(cluster, entry, isActive: isActive)
      } catch { report.corrupt("ERROR l2_offset=\(offset): \(error)") }
    }
  }

  private mutating func take(_ cluster: Qcow2Cluster, _ entry: UInt64, isActive: Bool) {
    switch cluster {
    case .unallocated, .zero(nil), .subclusters(nil, _, _): break
    case .compressed(let offset, let count):
      if isActive {
        report.allocatedClusters += 1
        report.compressedClusters += 1
      }
      // As many whole sectors as its entry claims.
      let start = offset & ~511
      use(.compressed, start, bytes: offset - start + UInt64(count), isSingle: false)
    case .data(let offset), .zero(let offset?), .subclusters(let offset?, _, _):
      if isActive { report.allocatedClusters += 1 }
      guard !header.hasDataFile else { return }
      use(.data, offset, bytes: header.clusterSize, isSingle: false)
      if isActive { checkCopied("data cluster:", offset, entry) }
    }
  }

  private mutating func checkCopied(_ what: @autoclosure () -> String, _ offset: UInt64, _ entry: UInt64) {
    let count = refcounts.count(offset / header.clusterSize)
    guard (count == 1) != (entry & Qcow2Entries.copied != 0) else { return }
    report.corrupt("ERROR OFLAG_COPIED \(what()) entry=\(String(entry, radix: 16)) refcount=\(count)")
  }

  private mutating func walk(_ bitmaps: Qcow2Bitmaps) {
    use(.bitmaps, bitmaps.directoryOffset, bytes: bitmaps.directorySize, isSingle: true)
    guard
      let directory = try? source.need(.bitmaps, at: bitmaps.directoryOffset, count: Int(bitmaps.directorySize))
    else { return report.fail("ERROR the directory of bitmaps cannot be read") }
    var place = 0
    for _ in 0..<bitmaps.count {
      guard place <= directory.count - 24 else { return report.corrupt("ERROR the directory of bitmaps is too short") }
      let offset = directory.word64(place)
      let entries = UInt64(directory.word32(place + 8))
      guard header.geometry.inCluster(offset) == 0, offset < Qcow2Limits.offset, entries <= Qcow2Limits.level1Entries else {
        return report.corrupt("ERROR the table of a bitmap at \(offset) is invalid")
      }
      guard spend(entries, on: "bitmaps") else { return }
      use(.bitmaps, offset, bytes: entries * 8, isSingle: true)
      let table = (try? source.read(at: offset, count: Int(entries) * 8)) ?? []
      for start in stride(from: 0, to: table.count - table.count % 8, by: 8) {
        let data = table.word64(start) & Qcow2Entries.offsetMask
        if data != 0 { use(.bitmaps, data, bytes: header.clusterSize, isSingle: true) }
      }
      place += (24 + Int(directory.word16(place + 18)) + Int(directory.word32(place + 20)) + 7) & ~7
    }
  }

  private mutating func walkBlocks() {
    let blocks = refcounts.blocks
    for (index, block) in blocks.enumerated() where block != 0 {
      guard Qcow2Refcounts<Source>.isPlace(block, header, source.byteCount) else {
        report.corrupt("ERROR refcount block \(index) at \(block) is outside the image, or not at the start of a cluster")
        continue
      }
      use(.refcountBlock, block, bytes: header.clusterSize, isSingle: true)
    }
  }

  // MARK: What is counted

  private mutating func compare() {
    let (size, perBlock) = (header.clusterSize, refcounts.perBlock)
    var seen: Set<UInt64> = []
    var last: UInt64? = nil
    let blocks = refcounts.blocks
    for (index, block) in blocks.enumerated() {
      // A block that is listed twice has been reported, and may be listed a million times.
      guard Qcow2Refcounts<Source>.isPlace(block, header, source.byteCount), seen.insert(block).inserted else { continue }
      if let end = compare(block: index) { last = end }
    }
    var report = report
    counts.visit { cluster, used in
      let index = cluster / perBlock
      if index < UInt64(blocks.count), seen.contains(blocks[Int(index)]) { return }
      report.corrupt("ERROR cluster \(cluster) refcount=0 reference=\(used)")
    }
    for cluster in single.keys.sorted() where counts[cluster] > 1 {
      report.corrupt("ERROR the \(single[cluster]?.rawValue ?? "") at \(cluster * size) is in use as something else, too")
    }
    // A refcount may be for a cluster that no file can have.
    report.imageEnd =
      last.map {
        let (end, isTooLarge) = ($0 + 1).multipliedReportingOverflow(by: size)
        return isTooLarge ? .max : end
      } ?? 0
    self.report = report
  }

  /// - Returns: the last cluster with a refcount in it.
  private mutating func compare(block index: Int) -> UInt64? {
    guard let bytes = refcounts.block(index) else { return nil }
    var last: UInt64? = nil
    // True of most blocks: eight bytes of zeroes, for clusters of one group.
    let perWord = ClusterCounts.group >> UInt64(header.refcountOrder)
    var cluster = UInt64(index) * refcounts.perBlock
    for start in stride(from: 0, to: bytes.count, by: 8) {
      defer { cluster += perWord }
      if bytes.word64(start) == 0, counts.isEmpty(around: cluster) { continue }
      for cluster in cluster..<cluster + perWord {
        let count = refcounts.count(cluster)
        if count > 0 { last = cluster }
        let used = counts[cluster]
        if count < used { report.corrupt("ERROR cluster \(cluster) refcount=\(count) reference=\(used)") }
        if count > used { report.leak("Leaked cluster \(cluster) refcount=\(count) reference=\(used)") }
      }
    }
    return last
  }
}
