/// The new refcounts of an image that is being changed.

/// Refcount blocks in memory, with their changes. Nothing is stored.
struct RefcountBook<Source: ImageSource> {
  private let source: Source
  private let header: Qcow2Header
  /// The most bytes of blocks in memory. In a sparse file, clusters may lie so far apart that each needs its own block.
  private let mostMemory: Int
  static var mostMemory: Int { 256 << 20 }
  /// Offsets of the blocks in the file; 0: there is none.
  private(set) var places: [UInt64]
  /// Blocks that have been read.
  private var blocks: [Int: [UInt8]] = [:]
  /// The numbers of blocks that have changed.
  private(set) var changed: Set<Int> = []

  /// - Throws: the table cannot be read, or has an invalid entry.
  init(_ source: Source, _ header: Qcow2Header, mostMemory: Int = Self.mostMemory) throws(Qcow2Fault) {
    (self.source, self.header, self.mostMemory) = (source, header, mostMemory)
    places = try Qcow2Refcounts(source, header).blocks
    for place in places where place != 0 {
      guard Qcow2Refcounts<Source>.isPlace(place, header, source.byteCount) else {
        throw .misplaced(.refcountBlock, offset: place)
      }
    }
  }

  private var order: UInt32 { header.refcountOrder }
  /// Refcounts per block.
  var perBlock: UInt64 { (header.clusterSize * 8) >> UInt64(order) }
  /// The largest refcount.
  private var most: UInt64 { order == 6 ? .max : 1 << (1 << UInt64(order)) - 1 }

  /// The number of blocks up to the last one that exists or has changed.
  var blockCount: Int { max((places.lastIndex { $0 != 0 } ?? -1) + 1, (changed.max() ?? -1) + 1) }

  /// - Parameter cluster: its number in the file.
  mutating func count(_ cluster: UInt64) throws(Qcow2Fault) -> UInt64 {
    let index = try load(cluster)
    return Qcow2Refcounts<Source>.entry(Int(cluster % perBlock), order: order, blocks[index, default: []])
  }

  /// Adds to the refcount of every cluster that these bytes are in.
  ///
  /// - Parameters:
  ///   - place: offset in the file, bytes.
  ///   - bytes: at least 1.
  /// - Throws: a refcount would be negative, or would not fit.
  mutating func add(_ change: Int64, at place: UInt64, bytes: UInt64 = 1) throws(Qcow2Fault) {
    let (end, isTooLarge) = place.addingReportingOverflow(bytes - 1)
    guard !isTooLarge, end < Qcow2Limits.offset * 2 else { throw .pastEnd(.data, offset: place) }
    for cluster in place / header.clusterSize...end / header.clusterSize { try add(change, to: cluster) }
  }

  private mutating func add(_ change: Int64, to cluster: UInt64) throws(Qcow2Fault) {
    guard change != 0 else { return }
    let old = try count(cluster)
    let (new, isNegative) =
      change < 0 ? old.subtractingReportingOverflow(change.magnitude) : old.addingReportingOverflow(change.magnitude)
    guard !isNegative || change > 0 else { throw .countTooSmall(offset: cluster * header.clusterSize) }
    guard !isNegative, new <= most else { throw .countTooLarge(bits: 1 << Int(order)) }
    let index = Int(cluster / perBlock)
    Qcow2Refcounts<Source>.put(new, Int(cluster % perBlock), order: order, &blocks[index, default: []])
    changed.insert(index)
  }

  /// Reads the block of a cluster if it is not in memory yet. - Returns: its number.
  private mutating func load(_ cluster: UInt64) throws(Qcow2Fault) -> Int {
    guard let index = Int(exactly: cluster / perBlock), index < Int(Qcow2Limits.refcountTable / 8) else { throw .isFull }
    if blocks[index] == nil {
      guard blocks.count < mostMemory / Int(header.clusterSize) else { throw .tooManyTables }
      blocks[index] = try old(index)
    }
    return index
  }

  /// A block as it is in the file; zeroes if there is none.
  private func old(_ index: Int) throws(Qcow2Fault) -> [UInt8] {
    let size = Int(header.clusterSize)
    var bytes: [UInt8] = []
    if index < places.count, places[index] != 0 {
      do { bytes = try source.read(at: places[index], count: size) } catch { throw .cannotRead(error) }
    }
    // The file may end inside a block.
    return bytes + [UInt8](repeating: 0, count: size - bytes.count)
  }

  /// The new contents of a block that has changed.
  func bytes(_ index: Int) -> [UInt8] { blocks[index] ?? [] }

  /// The first cluster number from which on no cluster has a refcount.
  ///
  /// - Parameter start: clusters below this number are ignored.
  /// - Throws: there are more blocks beyond it than any program allocates in advance.
  mutating func end(from start: UInt64) throws(Qcow2Fault) -> UInt64 {
    var (end, looked) = (start, 0)
    guard let first = Int(exactly: start / perBlock), first < places.count else { return start }
    for index in first..<places.count where places[index] != 0 {
      looked += 1
      guard looked <= ImageKeeper.mostBlocksAhead(perBlock: perBlock, header.clusterSize) else { throw .countsPastEnd }
      guard let byte = try old(index).lastIndex(where: { $0 != 0 }) else { continue }
      // Everything after that byte is 0, as is most of most blocks.
      for entry in (0...(UInt64(byte) * 8 + 7) >> UInt64(order)).reversed() {
        let cluster = UInt64(index) * perBlock + entry
        guard cluster >= end else { break }
        guard try count(cluster) == 0 else {
          end = cluster + 1
          break
        }
      }
    }
    return end
  }

  /// Clusters that have a refcount in the file and will have none: their numbers, ascending.
  func freed() throws(Qcow2Fault) -> [Range<UInt64>] {
    var ranges: [Range<UInt64>] = []
    for index in changed.sorted() {
      let (before, after) = (try old(index), bytes(index))
      guard before != after else { continue }
      for entry in 0..<Int(perBlock) {
        guard Qcow2Refcounts<Source>.entry(entry, order: order, after) == 0,
          Qcow2Refcounts<Source>.entry(entry, order: order, before) != 0
        else { continue }
        let cluster = UInt64(index) * perBlock + UInt64(entry)
        if let last = ranges.last, last.upperBound == cluster {
          ranges[ranges.count - 1] = last.lowerBound..<cluster + 1
        } else {
          ranges.append(cluster..<cluster + 1)
        }
      }
    }
    return ranges
  }
}
