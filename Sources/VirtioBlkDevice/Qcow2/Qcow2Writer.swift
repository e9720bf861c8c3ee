/// The one who writes metadata of an image, for all queues of its disk.
///
/// Everything that was answered is in the page cache: a process that is killed loses nothing that it acknowledged. So a pointer is stored
/// when its data is written, and not later. What makes that safe when the power goes is in `ImageKeeper`, and one rule here: a pointer
/// to what took the place of something that was not zeroes waits until its data is stable. One to a fresh cluster where there were zeroes
/// need not wait: without its data it is a hole, which reads as what was there before.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class Qcow2Writer: Sendable {
  /// Held by whoever changes what the image says of a cluster, from before it is looked at until it is said. Clusters share them.
  private final class Stripe: Sendable { let lock = Mutex<Void>(()) }

  private struct State {
    var keeper: ImageKeeper
    /// Clusters that are counted at once, the next time.
    var run: UInt64
    /// Clusters of the file that were claimed for clusters of the disk and are not pointed at, because something failed. What may be in
    /// them was written there by the guest, so they are for nobody else.
    var halfWritten: [UInt64: UInt64] = [:]
    /// Clusters of the disk whose place in the file may have something where the image says that nothing is.
    var spoiled: Set<UInt64> = []
    /// Clusters of the file that were to become L2 tables, by their number, where the L1 table may or may not say so.
    var halfTables: [Int: UInt64] = [:]
    /// Clusters were to be counted, and that failed: refcounts and their table may have all of it, or a part.
    var isHalfGrown = false
    /// Nothing is allocated any more.
    var isFinished = false
  }

  let calls: Qcow2Calls
  /// Bytes of the file when it was opened: what is past it is ours.
  let firstEnd: UInt64
  private let layer: Qcow2Layer
  private let state: Mutex<State>
  private let stripes: [Stripe]
  /// Syncs that were asked for, and the last of them that is done.
  private let asked = Atomic<UInt64>(0)
  private let synced = Mutex<UInt64>(0)
  /// A sync failed: what was lost then stays lost, and the kernel says so once.
  private let hasLost = Atomic<Bool>(false)

  /// Bytes of the file that are counted at once: little first, then more, so that a small image stays small and a large one is not
  /// waited for often.
  private static let runs: (first: UInt64, most: UInt64) = (1 << 20, 64 << 20)
  static let stripeCount = 64

  /// Stores what has to be before anything else is, which waits for the medium.
  /// - Throws: that cannot be done.
  init(_ keeper: ImageKeeper, _ layer: Qcow2Layer, witness: (any Qcow2Witness)? = nil) throws(Qcow2Fault) {
    calls = Qcow2Calls(descriptor: layer.file.rawValue, witness: witness)
    self.layer = layer
    firstEnd = keeper.firstEnd
    stripes = (0..<Self.stripeCount).map { _ in Stripe() }
    let run = max(Self.runs.first / keeper.geometry.clusterSize, 4)
    state = Mutex(State(keeper: keeper, run: run))
    let result = state.withLock { state in
      let plan = state.keeper.begin()
      return carryOut(plan, state.keeper)
    }
    guard result == 0 else { throw .cannotStore(.header, Errno(rawValue: -result)) }
  }

  // MARK: Stable storage

  /// Everything that was stored before is stable when it returns. Who comes while another waits for the medium waits for the next turn,
  /// with all others that came meanwhile.
  ///
  /// - Returns: 0, or −EIO, and then ever after.
  func sync() -> Int32 {
    // Full: what was stored before is seen by whoever sees the number.
    let number = asked.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
    return synced.withLock { last in
      guard !hasLost.load(ordering: .relaxed) else { return -EIO }
      guard last < number else { return 0 }
      let upTo = asked.load(ordering: .sequentiallyConsistent)
      guard calls.sync() == 0 else {
        hasLost.store(true, ordering: .relaxed)
        return -EIO
      }
      last = upTo
      return 0
    }
  }

  /// A guest's flush: a sync, and what lost its last pointer before that is counted down.
  func flush() -> Int32 {
    let dropped = state.withLock { $0.keeper.takeDropped() }
    let result = sync()
    if result == 0, !dropped.isEmpty { state.withLock { settle(dropped, &$0) } }
    return result
  }

  /// What cannot be stored is a leak.
  private func settle(_ dropped: [UInt64: UInt64], _ state: inout State) {
    for (index, place) in state.keeper.blocksNeeded(for: dropped) {
      guard let source = try? FileSource(calls.descriptor),
        let bytes = try? source.read(at: place, count: Int(layer.clusterSize))
      else { return }
      state.keeper.supply(bytes, block: index)
    }
    for store in state.keeper.settle(dropped) { _ = put(store, state.keeper) }
  }

  // MARK: Metadata

  private func put(_ store: ImageStore, _ keeper: ImageKeeper) -> Int32 {
    // Nothing that went wrong before may make a table land on data, or data on a table.
    guard keeper.mayStore(store) else { return -EIO }
    return calls.put(store.bytes, at: store.offset)
  }

  private func carryOut(_ plan: StorePlan, _ keeper: ImageKeeper) -> Int32 {
    if let length = plan.length {
      // One byte, past everything that is in use, and the file is as long as that.
      let result = calls.put([0], at: length - 1)
      guard result == 0 else { return result }
    }
    for group in plan.groups where !group.isEmpty {
      for store in group {
        let result = put(store, keeper)
        guard result == 0 else { return result }
      }
      let result = sync()
      guard result == 0 else { return result }
    }
    return 0
  }

  /// Nobody writes to the image any more before it is repaired.
  func markCorrupt() {
    state.withLock { state in
      guard !state.isFinished else { return }
      state.isFinished = true
      let plan = state.keeper.markCorrupt()
      _ = carryOut(plan, state.keeper)
    }
  }

  // MARK: Clusters

  /// A cluster of the file that nobody has.
  ///
  /// - Returns: where it is, or a negative errno.
  private func claim(_ state: inout State) -> Result<UInt64, Failure> {
    guard !state.isFinished, !hasLost.load(ordering: .relaxed) else { return .failure(Failure(-EIO)) }
    if !state.keeper.hasFree {
      var next = state.keeper
      let plan: StorePlan
      do throws(Qcow2Fault) { plan = try next.grow(by: state.run) } catch { return .failure(Failure(-ENOSPC)) }
      let result = carryOut(plan, next)
      state.isHalfGrown = result != 0
      guard result == 0 else { return .failure(Failure(result)) }
      state.keeper = next
      state.run = min(state.run * 2, max(Self.runs.most / next.geometry.clusterSize, state.run))
    }
    guard let place = state.keeper.claim() else { return .failure(Failure(-ENOSPC)) }
    return .success(place)
  }

  struct Failure: Error {
    let result: Int32
    init(_ result: Int32) { self.result = result }
  }

  /// A cluster for a cluster of the disk, which the caller has for itself.
  ///
  /// - Parameter number: of the disk's cluster.
  /// - Returns: where it is, and whether nothing has ever been written there.
  func claim(for number: UInt64) throws(Failure) -> (place: UInt64, isFresh: Bool) {
    let result: Result<(place: UInt64, isFresh: Bool), Failure> = state.withLock { state in
      if let place = state.halfWritten.removeValue(forKey: number) {
        state.spoiled.insert(number)
        return .success((place, false))
      }
      return claim(&state).map { ($0, true) }
    }
    return try result.get()
  }

  /// Something failed, and it is not pointed at.
  func keep(_ place: UInt64, for number: UInt64) { state.withLock { $0.halfWritten[number] = place } }

  /// Something failed, and a place that is pointed at has more than the image says.
  func spoil(_ number: UInt64) { state.withLock { _ = $0.spoiled.insert(number) } }

  /// Whether the place of a cluster of the disk is a hole wherever the image does not say that something is.
  func isHole(_ place: UInt64, for number: UInt64) -> Bool {
    place >= firstEnd && state.withLock { !$0.spoiled.contains(number) }
  }

  /// Says what a cluster of the disk is from now on. What it needs is stable, as far as that is necessary.
  ///
  /// - Parameter old: what it was; `drops`: that loses a pointer.
  /// - Returns: 0, or a negative errno, and then nothing has changed.
  func publish(at offset: UInt64, _ entry: UInt64, _ bitmap: UInt64, old: ClusterEntry, drops: Bool) -> Int32 {
    state.withLock { state in
      guard !state.isFinished, !hasLost.load(ordering: .relaxed) else { return -EIO }
      let result = ensureTable(layer.geometry.level1Index(offset), &state)
      guard result == 0 else { return result }
      guard let store = state.keeper.entryStore(offset, entry, bitmap) else { return -EIO }
      let stored = put(store, state.keeper)
      guard stored == 0 else { return stored }
      layer.change(at: offset, entry, bitmap)
      if drops, let dropped = old.dropped { state.keeper.drop(dropped.place, bytes: dropped.bytes) }
      return 0
    }
  }

  /// There is an L2 table that this image's disk alone has.
  private func ensureTable(_ index: Int, _ state: inout State) -> Int32 {
    let (old, isOwn) = state.keeper.level1Entry(index)
    guard old == 0 || !isOwn else { return layer.hasTable(index) ? 0 : -EIO }
    let half = state.halfTables[index]
    let place: UInt64
    switch half.map(Result.success) ?? claim(&state) {
    case .failure(let failure): return failure.result
    case .success(let claimed): place = claimed
    }
    let entry = state.keeper.adopt(place, index)
    var result: Int32 = 0
    if old != 0 {
      // A snapshot's, too. One of nothing is a hole, as what was claimed is.
      result =
        layer.tableBytes(index).map { bytes in
          carryOut(StorePlan(groups: [[ImageStore.table(at: place, bytes)]]), state.keeper)
        } ?? -EIO
      guard result == 0 else {
        if half == nil { state.keeper.abandon(place) } else { state.keeper.leak(place) }
        return result
      }
    }
    result = put(entry, state.keeper)
    guard result == 0 else {
      // A store that failed may have been carried out.
      state.keeper.leak(place)
      state.halfTables[index] = place
      return result
    }
    state.halfTables[index] = nil
    state.keeper.setLevel1(index, place)
    layer.moveTable(index, to: place)
    return 0
  }

  // MARK: Clusters of the disk

  /// Has clusters of the disk for itself while it does something.
  ///
  /// - Parameter numbers: of the disk's clusters, fewer than there are stripes.
  func withClusters(_ numbers: Range<UInt64>, _ body: () -> Int32) -> Int32 {
    // In the order of stripes, whoever else wants some of them.
    let wanted = Set(numbers.map { Int($0 % UInt64(Self.stripeCount)) }).sorted()
    return hold(wanted[...], body)
  }

  private func hold(_ wanted: ArraySlice<Int>, _ body: () -> Int32) -> Int32 {
    guard let first = wanted.first else { return body() }
    return stripes[first].lock.withLock { _ in hold(wanted.dropFirst(), body) }
  }

  // MARK: The end

  /// Gives back what was counted and not used. Nothing is under way any more. Later calls do nothing.
  ///
  /// - Parameter mayCut: the file may be made as short as it can be.
  func finish(mayCut: Bool) {
    guard !state.withLock({ $0.isFinished }) else { return }
    if state.withLock({ $0.keeper.hasDropped }) { _ = flush() }
    state.withLock { state in
      guard !state.isFinished else { return }
      state.isFinished = true
      guard !hasLost.load(ordering: .relaxed), !state.isHalfGrown else { return }
      // What failed may have been stored all the same: clusters that may be pointed at stay counted.
      let (stores, length) = state.keeper.finish()
      for store in stores { guard put(store, state.keeper) == 0 else { return } }
      if mayCut, let length { calls.cut(length) }
    }
  }
}
