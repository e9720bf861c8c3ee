/// The device's side of a split virtqueue (virtio 2.6): table, available ring, used ring.
///
/// The driver owns every byte here and may change any of them at any time. So each word is read once, into a local, through a
/// `SharedCell`, and only the local is used; the descriptor table is never written.

/// A split queue without an in-flight record.
public typealias SplitQueue = SplitRing<PrivateHeads>
/// A split queue with an in-flight record.
public typealias RecordedSplitQueue = SplitRing<InflightHeads>

/// A running split queue. - Parameter Heads: its record of the heads that it has taken.
@safe
public struct SplitRing<Heads: HeadBook & ~Copyable>: Virtqueue, ~Copyable {
  @inlinable public static var isRecorded: Bool { Heads.isLasting }

  /// Descriptors of the ring: a power of two, 1 … 32768.
  public let size: UInt16
  /// Turns a free-running index into a slot.
  @usableFromInline let mask: Int
  private let memory: GuestMemory
  @usableFromInline let hasEventIndex: Bool

  @usableFromInline var table: DescriptorTable
  @usableFromInline let available: UnsafeMutableRawPointer
  @usableFromInline let used: UnsafeMutableRawPointer

  /// The index of the next available entry to take; the ring's index is its low 16 bits (see `HeadBook.begin`).
  @usableFromInline var order: UInt64
  /// The driver's index when it was last read; entries before it may be taken without reading it again.
  @usableFromInline var seenAvailable: UInt16
  /// The free-running index of the next used element, counting those not yet published.
  @usableFromInline var nextUsed: UInt16
  @usableFromInline var publishedUsed: UInt16
  /// `publishedUsed` at the last notification decision.
  @usableFromInline var decidedUsed: UInt16
  @usableFromInline var kicksAreSuppressed: Bool
  /// For a driver that relies on the order: the index of the used element that stands for the chains pushed last, and whether
  /// another chain may join them.
  @usableFromInline var batchBegin: UInt16 = 0
  @usableFromInline var batchIsWhole = false

  @usableFromInline var heads: Heads
  /// The index of the first used element that `takeWritten` has not reported.
  private var notedUsed: UInt16

  public init(
    _ configuration: QueueConfiguration, memory: GuestMemory, features: FeatureSet, position: QueuePosition,
    record: InflightRecord? = nil
  ) throws(QueueError) {
    let size = configuration.size
    guard !features.contains(.packedRing) else { throw .otherFormat }
    guard size > 0, size <= 32768, size & (size - 1) == 0 else { throw .badSize(size) }
    var view = memory.view()
    func part(
      _ part: QueueError.RingPart, _ address: GuestAddress, alignment: UInt64, count: Int, access: MemoryAccess = .read
    ) throws(QueueError) -> UnsafeMutableRawPointer {
      guard address.isAligned(to: alignment) else { throw .misaligned(part: part, address) }
      guard let piece = view.contiguous(address, count: count, for: access) else { throw .unmapped(part: part, address) }
      // Guest addresses and host addresses need not be aligned alike: a region can lie anywhere in its mapping.
      guard unsafe UInt(bitPattern: piece.base) % UInt(alignment) == 0 else { throw .misaligned(part: part, address) }
      return unsafe piece.base
    }
    // Both rings are mapped with their event word, because the layout in memory always has room for it (virtio 2.6).
    let entries = Int(size)
    let table = unsafe try part(.descriptorTable, configuration.descriptorTable, alignment: 16, count: 16 * entries)
    let available = unsafe try part(.availableRing, configuration.availableRing, alignment: 2, count: 6 + 2 * entries)
    let used = unsafe try part(
      .usedRing, configuration.usedRing, alignment: 4, count: 6 + 8 * entries, access: [.read, .write])
    var indices = unsafe SplitIndices(
      available: SharedCell<UInt16>(available + 2).loadAcquire(), used: SharedCell<UInt16>(used + 2).loadRelaxed())
    if !features.contains(.inOrder) {
      let newest = Int(indices.used &- 1) & (entries - 1)
      indices.newest = unsafe SharedCell<UInt32>(used + (4 + newest * 8)).loadRelaxed()
    }
    let heads = try Heads(size: size, record: record, position: position, indices: indices)
    unsafe self.table = DescriptorTable(
      table, size: size, view: view, hasIndirect: features.contains(.indirectDescriptors))
    unsafe self.available = available
    unsafe self.used = used
    self.size = size
    mask = entries - 1
    self.memory = memory
    self.hasEventIndex = features.contains(.eventIndex)
    self.order = heads.begin
    self.seenAvailable = UInt16(truncatingIfNeeded: heads.begin)
    self.nextUsed = heads.beginUsed
    self.publishedUsed = heads.beginUsed
    self.decidedUsed = heads.beginUsed
    self.kicksAreSuppressed = false
    self.notedUsed = heads.beginUsed
    self.heads = heads
  }

  @inlinable var nextAvailable: UInt16 {
    @inline(__always) get { UInt16(truncatingIfNeeded: order) }
  }

  public var position: QueuePosition { QueuePosition(available: nextAvailable, used: publishedUsed) }

  public func position(handingBack count: UInt16) -> QueuePosition {
    QueuePosition(available: nextAvailable &- count, used: publishedUsed)
  }

  // MARK: Taking

  @inlinable @inline(__always)
  public mutating func hasAvailable() -> Bool {
    unsafe nextAvailable != seenAvailable || SharedCell<UInt16>(available + 2).loadRelaxed() != nextAvailable
  }

  @inlinable @inline(__always)
  public mutating func pop(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    // A chain that the fast path does not handle is read again from the start: nothing that was read is passed on, so that no
    // copy is checked and another one used. It also means that the fast path has nothing to preserve. Only the second shape is
    // ever stored in memory.
    var plain = unsafe ChainShape(at: segments)
    if let chain = unsafe popPlain(into: segments, capacity: capacity, shape: &plain) {
      shape = plain
      return chain
    }
    var other = unsafe ChainShape(at: segments)
    let chain = unsafe try popAny(into: segments, capacity: capacity, shape: &other)
    shape = other
    return chain
  }

  /// The fast path, for chains as drivers make them: nothing empty, nothing outside memory or across regions, enough room, an
  /// indirect table in one piece.
  /// - Returns: `nil` for any other chain, and if nothing is available; nothing was taken then.
  @inlinable @inline(__always)
  mutating func popPlain(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) -> Chain? {
    guard nextAvailable != seenAvailable else { return nil }
    let entry = Int(truncatingIfNeeded: order) & mask
    let head = unsafe SharedCell<UInt16>(available + (4 &+ entry &* 2)).loadRelaxed()
    guard head < size, !heads.isTaken(head) else { return nil }
    heads.take(head, order: order)
    guard unsafe table.walkPlain(head, into: segments, capacity: capacity, shape: &shape) else {
      heads.takeBack(head)
      return nil
    }
    order &+= 1
    return Chain(head: head)
  }

  /// Takes any chain, or throws what is wrong with the ring. The first chain after kicks were enabled takes this path, because
  /// all entries up to the index that was read were taken before.
  @inlinable @inline(never)
  mutating func popAny(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    if nextAvailable == seenAvailable {
      // Acquire: what the driver stored before it moved idx (ring entries, descriptors, buffers) is read after idx.
      let index = unsafe SharedCell<UInt16>(available + 2).loadAcquire()
      guard index != seenAvailable else { return nil }
      // Free-running indices: the distance is correct across the wrap, and also reveals an index that went back.
      guard index &- nextAvailable <= size else {
        throw .availableIndexJumped(from: nextAvailable, to: index, size: size)
      }
      seenAvailable = index
      if let chain = unsafe popPlain(into: segments, capacity: capacity, shape: &shape) {
        suppressKicks()
        return chain
      }
    }
    let entry = Int(truncatingIfNeeded: order) & mask
    let head = unsafe SharedCell<UInt16>(available + (4 &+ entry &* 2)).loadRelaxed()
    guard head < size else { throw .headOutOfRange(head) }
    guard !heads.isTaken(head) else { throw .headAlreadyInFlight(head) }
    unsafe try table.walk(head, into: segments, capacity: capacity, shape: &shape)
    suppressKicks()
    heads.take(head, order: order)
    order &+= 1
    return Chain(head: head)
  }

  public var interrupted: Int { heads.interrupted }

  public mutating func retake(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    guard let head = heads.nextInterrupted else { return nil }
    unsafe try table.walk(head, into: segments, capacity: capacity, shape: &shape)
    suppressKicks()
    heads.resume()
    KillPoint.pass(.recoveryResumed)
    return Chain(head: head)
  }

  // MARK: Giving back

  @inlinable @inline(__always)
  public mutating func push(_ chain: consuming Chain, written: UInt32) {
    let head = chain.complete()
    let element = unsafe used + (4 &+ (Int(nextUsed) & mask) &* 8)
    unsafe SharedCell<UInt32>(element).storeRelaxed(UInt32(head))
    KillPoint.pass(.answerNamed)
    unsafe SharedCell<UInt32>(element + 4).storeRelaxed(written)
    KillPoint.pass(.answerWritten)
    heads.answer(head)
    nextUsed &+= 1
  }

  @inlinable @inline(__always)
  public var unpublished: Int { Int(nextUsed &- publishedUsed) }

  @inlinable @inline(__always)
  public var pushes: UInt16 { nextUsed }

  @inlinable @inline(__always)
  public mutating func publish() {
    guard nextUsed != publishedUsed else { return }
    // Release: data, status bytes and used elements are visible before the index that promises them (virtio 2.6.8.2).
    unsafe SharedCell<UInt16>(used + 2).storeRelease(nextUsed)
    KillPoint.pass(.publishShown)
    heads.didPublish(from: publishedUsed, to: nextUsed)
    publishedUsed = nextUsed
  }

  @inlinable @inline(__always)
  public mutating func needsCall() -> Bool {
    guard publishedUsed != decidedUsed else { return false }
    let old = decidedUsed
    decidedUsed = publishedUsed
    // Full: our store of used.idx comes before this load of used_event or of the flags. The driver stores these and then loads
    // used.idx; with anything weaker both could miss each other's store, and the driver would sleep on finished work.
    fullFence()
    guard hasEventIndex else { return unsafe SharedCell<UInt16>(available).loadRelaxed() & 1 == 0 }
    let event = unsafe SharedCell<UInt16>(available + (4 &+ Int(size) &* 2)).loadRelaxed()
    // Whether an index in (old, published] passed the event; correct across the wrap (virtio 2.6.7).
    return publishedUsed &- event &- 1 < publishedUsed &- old
  }

  /// Elements that are pushed and not yet published are in the ring, too, and are reported again when the index that publishes
  /// them is written.
  public mutating func takeWritten(_ each: (_ area: WrittenArea, _ offset: Int, _ count: Int) -> Void) {
    each(.device, 0, 4)
    if hasEventIndex { each(.device, 4 + 8 * Int(size), 2) }
    let count = min(Int(nextUsed &- notedUsed), Int(size))
    let first = Int(nextUsed &- UInt16(truncatingIfNeeded: count)) & mask
    let upToEnd = min(count, Int(size) - first)
    if upToEnd > 0 { each(.device, 4 + 8 * first, 8 * upToEnd) }
    if count > upToEnd { each(.device, 4, 8 * (count - upToEnd)) }
    notedUsed = publishedUsed
  }

  // MARK: Kicks

  @inlinable
  mutating func suppressKicks() {
    guard !kicksAreSuppressed else { return }
    kicksAreSuppressed = true
    // With event indices a stale avail_event suppresses kicks by itself, and the flags stay 0 (virtio 2.6.10.2).
    if !hasEventIndex { unsafe SharedCell<UInt16>(used).storeRelaxed(1) }
  }

  @inlinable @inline(__always)
  public mutating func enableKicks() -> Bool {
    kicksAreSuppressed = false
    if hasEventIndex {
      unsafe SharedCell<UInt16>(used + (4 &+ Int(size) &* 8)).storeRelaxed(nextAvailable)
    } else {
      unsafe SharedCell<UInt16>(used).storeRelaxed(0)
    }
    // Full: the request for kicks is visible before idx is read again. The driver moves idx and then checks whether kicks are
    // wanted.
    fullFence()
    return unsafe SharedCell<UInt16>(available + 2).loadRelaxed() != nextAvailable
  }
}
