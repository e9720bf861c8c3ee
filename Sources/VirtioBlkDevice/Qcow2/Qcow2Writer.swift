/// The only writer of an image's metadata, for all queues of its disk.
///
/// Everything that was answered is in the page cache, so a killed process loses nothing that it acknowledged. Therefore a
/// pointer is stored as soon as its data is written. What makes that safe in a power failure is in `ImageKeeper`, and one rule
/// here: a pointer to a cluster that replaces something other than zeroes waits until its data is stable. A new cluster that
/// replaces zeroes need not wait: without its data it is a hole, which reads as zeroes, like before.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class Qcow2Writer: Sendable {
  /// Held while the mapping of a cluster is changed, from looking it up until the change is stored. Several clusters share a
  /// lock.
  private final class Stripe: Sendable { let lock = Mutex<Void>(()) }

  private struct State {
    var keeper: ImageKeeper
    /// How many clusters the next run has.
    var run: UInt64
    /// Clusters of the file that were claimed for clusters of the disk, and that nothing refers to because something failed.
    /// They may contain data of the guest, so they are not used for anything else.
    var halfWritten: [UInt64: UInt64] = [:]
    /// Clusters of the disk whose cluster in the file may have contents where the image says that there are none.
    var spoiled: Set<UInt64> = []
    /// Clusters of the file that were to become L2 tables, by number; the L1 table may or may not refer to them.
    var halfTables: [Int: UInt64] = [:]
    /// Setting refcounts failed: all or part of the change may be in the file.
    var isHalfGrown = false
    /// No more clusters are allocated.
    var isFinished = false
  }

  let calls: Qcow2Calls
  /// The length of the file when it was opened, bytes: everything beyond it is ours.
  let firstEnd: UInt64
  private let layer: Qcow2Layer
  private let state: Mutex<State>
  private let stripes: [Stripe]
  /// The number of syncs requested, and the last one that is done.
  private let asked = Atomic<UInt64>(0)
  private let synced = Mutex<UInt64>(0)
  /// A sync failed, of everything or of a part: the data is lost for good, and the kernel reports that only once.
  private let hasLost = Atomic<Bool>(false)

  /// The sizes of runs, bytes: small at first, then larger, so that a small image stays small and a large one seldom has to
  /// wait.
  private static let runs: (first: UInt64, most: UInt64) = (1 << 20, 64 << 20)
  static let stripeCount = 64

  /// Stores what has to be stored before anything else; waits for the medium.
  /// - Throws: why that failed.
  init(
    _ keeper: ImageKeeper, _ layer: Qcow2Layer, witness: (any Qcow2Witness)? = nil, windows: PopulatedWindows? = nil
  ) throws(Qcow2Fault) {
    calls = Qcow2Calls(descriptor: layer.file.rawValue, witness: witness, windows: windows)
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

  /// When it returns, everything that was stored before is stable. A caller that comes while another waits for the medium
  /// shares the next sync with all others that came in the meantime.
  ///
  /// - Returns: 0 or −EIO; after the first −EIO always −EIO.
  func sync() -> Int32 {
    // Sequentially consistent: a reader of the number also sees what was stored before.
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

  /// A guest's flush: a sync, after which the refcounts of clusters that lost a pointer before are decremented.
  func flush() -> Int32 {
    let dropped = state.withLock { $0.keeper.takeDropped() }
    let result = sync()
    if result == 0, !dropped.isEmpty { state.withLock { settle(dropped, &$0) } }
    return result
  }

  /// Decrements the refcounts of these clusters. If that cannot be stored, the clusters are leaked.
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
    // Whatever failed before, a table must never be stored over data, nor data over a table.
    guard keeper.mayStore(store) else { return -EIO }
    return calls.put(store.bytes, at: store.offset)
  }

  /// Stores a plan; each group is stable before the next one is stored. This does not wait for the guest's data, of which there
  /// may be much in the page cache.
  private func carryOut(_ plan: StorePlan, _ keeper: ImageKeeper) -> Int32 {
    if let length = plan.length {
      // One byte, beyond everything in use, extends the file.
      let result = calls.put([0], at: length - 1)
      guard result == 0 else { return result }
      guard makeStable([0], at: length - 1) else { return -EIO }
    }
    for group in plan.groups {
      for store in group {
        let result = put(store, keeper)
        guard result == 0 else { return result }
      }
      if group.count > Self.fewStores {
        let result = sync()
        guard result == 0 else { return result }
      } else {
        for store in group { guard makeStable(store.bytes, at: store.offset) else { return -EIO } }
      }
    }
    return 0
  }

  /// How many stores are made stable one by one, each at the cost of a flush of the device.
  private static let fewStores = 4

  /// Like `sync`, one call at a time: the kernel reports an error of any page to whoever asks first, and only once.
  ///
  /// - Returns: whether it is stable; if not, nothing will be any more.
  private func makeStable(_ bytes: [UInt8], at offset: UInt64) -> Bool {
    synced.withLock { _ in
      guard !hasLost.load(ordering: .relaxed) else { return false }
      guard calls.makeStable(bytes, at: offset) != 0 else { return true }
      hasLost.store(true, ordering: .relaxed)
      return false
    }
  }

  /// Marks the image as corrupt: nobody writes to it before it is repaired.
  func markCorrupt() {
    state.withLock { state in
      guard !state.isFinished else { return }
      state.isFinished = true
      let plan = state.keeper.markCorrupt()
      _ = carryOut(plan, state.keeper)
    }
  }

  // MARK: Clusters

  /// Claims a free cluster of the file.
  ///
  /// - Returns: its offset, or a negative errno.
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

  /// Claims a cluster of the file for a cluster of the disk that the caller has locked.
  ///
  /// - Parameter number: of the disk's cluster.
  /// - Returns: its offset, and whether nothing has ever been written to it.
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

  /// Something failed, and nothing refers to the cluster.
  func keep(_ place: UInt64, for number: UInt64) { state.withLock { $0.halfWritten[number] = place } }

  /// Something failed, and a cluster that is in use contains more than the image says.
  func spoil(_ number: UInt64) { state.withLock { _ = $0.spoiled.insert(number) } }

  /// Whether the cluster in the file is a hole wherever the image says that there is nothing.
  func isHole(_ place: UInt64, for number: UInt64) -> Bool {
    place >= firstEnd && state.withLock { !$0.spoiled.contains(number) }
  }

  /// Stores a new mapping of a cluster of the disk. What it refers to is stable already, as far as necessary.
  ///
  /// - Parameter old: the mapping before; `drops`: its cluster loses a pointer.
  /// - Returns: 0; or a negative errno, in which case nothing has changed.
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

  /// Makes sure that there is an L2 table that is not shared.
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
      // The old table is shared with a snapshot. A new table without entries is a hole, like the claimed cluster.
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
      // A store that failed may have been executed.
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

  /// Locks clusters of the disk while `body` runs.
  ///
  /// - Parameter numbers: of the clusters, fewer than there are stripes.
  func withClusters(_ numbers: Range<UInt64>, _ body: () -> Int32) -> Int32 {
    // In the order of stripes, so that two callers cannot deadlock.
    let wanted = Set(numbers.map { Int($0 % UInt64(Self.stripeCount)) }).sorted()
    return hold(wanted[...], body)
  }

  private func hold(_ wanted: ArraySlice<Int>, _ body: () -> Int32) -> Int32 {
    guard let first = wanted.first else { return body() }
    return stripes[first].lock.withLock { _ in hold(wanted.dropFirst(), body) }
  }

  // MARK: The end

  /// Releases the refcounts of clusters that were not used. To be called when nothing is in flight any more. Later calls do
  /// nothing.
  ///
  /// - Parameter mayCut: the file may be truncated to what is in use.
  func finish(mayCut: Bool) {
    guard !state.withLock({ $0.isFinished }) else { return }
    if state.withLock({ $0.keeper.hasDropped }) { _ = flush() }
    state.withLock { state in
      guard !state.isFinished else { return }
      state.isFinished = true
      guard !hasLost.load(ordering: .relaxed), !state.isHalfGrown else { return }
      // A store that failed may have been executed: clusters that something may refer to keep their refcounts.
      let (stores, length) = state.keeper.finish()
      for store in stores { guard put(store, state.keeper) == 0 else { return } }
      if mayCut, let length { calls.cut(length) }
    }
  }
}
