/// Recovery from the in-flight record that the previous user of a split queue left.

/// Recovers a region before its ring runs. It may be killed between any two stores, and run again.
@safe
struct InflightRecovery {
  /// A head that was taken and not published as used.
  struct Head {
    var head: UInt16
    var order: UInt64
  }

  private let region: UnsafeMutableRawPointer
  private let size: UInt16
  /// Entries of the region.
  private let capacity: UInt16

  init(region: UnsafeMutableRawPointer, size: UInt16, capacity: UInt16) {
    unsafe self.region = region
    self.size = size
    self.capacity = capacity
  }

  private func cell(_ offset: Int) -> SharedCell<UInt16> { unsafe SharedCell(region + offset) }
  private var version: SharedCell<UInt16> { cell(8) }
  private var entries: SharedCell<UInt16> { cell(10) }
  private var last: SharedCell<UInt16> { cell(12) }
  private var used: SharedCell<UInt16> { cell(14) }
  private func entry(_ head: UInt16) -> UnsafeMutableRawPointer {
    unsafe region + (InflightMemory.headerBytes + InflightMemory.entryBytes * Int(head))
  }
  private func mark(_ head: UInt16) -> SharedCell<UInt8> { unsafe SharedCell(entry(head)) }
  private func link(_ head: UInt16) -> SharedCell<UInt16> { unsafe SharedCell(entry(head) + 6) }
  private func order(_ head: UInt16) -> SharedCell<UInt64> { unsafe SharedCell(entry(head) + 8) }

  /// - Parameter indices: of the ring in guest memory.
  /// - Returns: the heads to be taken again, in the order in which they were taken.
  func run(_ indices: SplitIndices) throws(QueueError) -> [Head] {
    switch version.loadRelaxed() {
    case 0:
      begin(indices)
      return []
    case InflightHeads.version: break
    case let other: throw .inflightVersion(other)
    }
    // Other implementations store either the number of entries of the region or that of the ring.
    let recorded = entries.loadRelaxed()
    guard recorded >= size, recorded <= capacity else { throw .inflightSize(recorded: recorded, size: size) }
    finishPublication(indices)
    let left = collect()
    // Each of them was made available and is not used yet, so there cannot be more.
    let waiting = indices.available &- indices.used
    guard left.count <= Int(waiting) else { throw .inflightTooMany(left.count, waiting: waiting) }
    return left
  }

  /// The region has not been used: its contents are ignored.
  private func begin(_ indices: SplitIndices) {
    for head in 0..<capacity {
      mark(head).storeRelease(0)
      KillPoint.pass(.recoveryCleared)
    }
    last.storeRelease(0)
    entries.storeRelease(capacity)
    KillPoint.pass(.recoverySized)
    used.storeRelease(indices.used)
    KillPoint.pass(.recoveryCopied)
    // Last: from now on the region is valid.
    version.storeRelease(InflightHeads.version)
    KillPoint.pass(.recoveryBegun)
  }

  /// Frees the heads of a published batch, if that was interrupted. The batch ends where it would be longer than the ring or
  /// contain a head twice, or where a link is invalid.
  ///
  /// There was such a batch only if its last head is the one in the newest used element. Otherwise the copy of the index is
  /// merely stale: other implementations start it at 0 even for a ring that was used before, until they answer something.
  private func finishPublication(_ indices: SplitIndices) {
    let (known, shown) = (used.loadRelaxed(), indices.used)
    guard known != shown else { return }
    var seen = [Bool](repeating: false, count: Int(size))
    var head = last.loadRelaxed()
    let isBatch = indices.newest.map { $0 == UInt32(head) } ?? true
    for _ in 0..<(isBatch ? min(shown &- known, size) : 0) {
      guard head < size, !seen[Int(head)] else { break }
      seen[Int(head)] = true
      mark(head).storeRelease(0)
      KillPoint.pass(.recoveryFreed)
      head = link(head).loadRelaxed()
    }
    // Last: if the process dies before this store, all of this is repeated.
    used.storeRelease(shown)
    KillPoint.pass(.recoveryFinished)
  }

  private func collect() -> [Head] {
    var heads: [Head] = []
    for head in 0..<size where mark(head).loadRelaxed() != 0 {
      heads.append(Head(head: head, order: order(head).loadRelaxed()))
    }
    // Equal orders are a mistake of the writer; then the heads decide, so that the result is deterministic.
    return heads.sorted { ($0.order, $0.head) < ($1.order, $1.head) }
  }
}
