/// What the previous user of a split queue left in its in-flight record.

/// Recovers a region before its ring runs. It may be interrupted between any two stores, and run again.
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
    // Other implementations store how many the region has room for, or how many the ring has.
    let recorded = entries.loadRelaxed()
    guard recorded >= size, recorded <= capacity else { throw .inflightSize(recorded: recorded, size: size) }
    finishPublication(indices)
    let left = collect()
    // Each of them was made available, and is not used yet.
    let waiting = indices.available &- indices.used
    guard left.count <= Int(waiting) else { throw .inflightTooMany(left.count, waiting: waiting) }
    return left
  }

  /// The region has not been used: nothing in it means anything.
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

  /// Frees the heads of a published batch, if that was interrupted.
  private func finishPublication(_ indices: SplitIndices) {
    guard used.loadRelaxed() != indices.used else { return }
    for head in batch(indices) {
      mark(head).storeRelease(0)
      KillPoint.pass(.recoveryFreed)
    }
    // Last: until then all of this is repeated.
    used.storeRelease(indices.used)
    KillPoint.pass(.recoveryFinished)
  }

  /// Heads of the batch that was published last and may not be free yet, the last one first. Nothing is stored before it is known.
  ///
  /// Others begin with an index of 0 for a ring that was used before, so that 0 says nothing of how long their first batch is, nor
  /// that there was one. Then both rings tell: as far as the driver has not made others available in their place, the available
  /// ring names what was taken in the order in which it was taken, from where this back-end began.
  private func batch(_ indices: SplitIndices) -> [UInt16] {
    let known = used.loadRelaxed()
    let linked = linkedHeads(indices, limit: min(indices.used &- known, size))
    guard known == 0, let names = indices.names else { return linked }
    let marked = (0..<size).filter { mark($0).loadRelaxed() != 0 }
    for count in stride(from: linked.count, through: 0, by: -1) {
      let batch = linked.prefix(count)
      let left = marked.filter { !batch.contains($0) }
      guard areDistinct(left, indices, names) else { continue }
      let taken = (left + batch).map { Head(head: $0, order: order($0).loadRelaxed()) }.sorted { $0.order < $1.order }
      if began(with: taken, at: indices.used &- UInt16(count), indices.available, names) { return Array(batch) }
    }
    return linked
  }

  /// What was answered last, by the links from head to head. They end where there would be more than the ring has or one twice, where
  /// one is invalid, and where the used ring names another.
  private func linkedHeads(_ indices: SplitIndices, limit: UInt16) -> [UInt16] {
    var seen = [Bool](repeating: false, count: Int(size))
    var heads: [UInt16] = []
    var head = last.loadRelaxed()
    for count in 0..<limit {
      guard head < size, !seen[Int(head)] else { break }
      if let names = indices.names, names.used[slot(indices.used &- 1 &- count)] != UInt32(head) { break }
      seen[Int(head)] = true
      heads.append(head)
      head = link(head).loadRelaxed()
    }
    return heads
  }

  /// Whether the available ring names these from an index on, where the driver has not written anew.
  private func began(
    with taken: [Head], at begin: UInt16, _ available: UInt16, _ names: SplitIndices.Names
  ) -> Bool {
    taken.indices.allSatisfy { number in
      let index = begin &+ UInt16(number)
      let isOverwritten = available &- index > size
      return isOverwritten || names.available[slot(index)] == taken[number].head
    }
  }

  /// Whether these and those that were not taken yet are each there once.
  private func areDistinct(_ left: [UInt16], _ indices: SplitIndices, _ names: SplitIndices.Names) -> Bool {
    let waiting = Int(indices.available &- indices.used)
    guard left.count <= waiting, waiting <= Int(size) else { return false }
    var seen = Set(left)
    return (left.count..<waiting).allSatisfy {
      seen.insert(names.available[slot(indices.used &+ UInt16($0))]).inserted
    }
  }

  /// Of an index, in either ring.
  private func slot(_ index: UInt16) -> Int { Int(index & (size - 1)) }

  private func collect() -> [Head] {
    var heads: [Head] = []
    for head in 0..<size where mark(head).loadRelaxed() != 0 {
      heads.append(Head(head: head, order: order(head).loadRelaxed()))
    }
    // Equal orders are a mistake of whoever wrote the record; then the heads decide, so that the result is always the same.
    return heads.sorted { ($0.order, $0.head) < ($1.order, $1.head) }
  }
}
