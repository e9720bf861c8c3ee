/// The book of a packed ring that outlives it: the region of a packed queue as vhost-user lays it out ("Inflight I/O
/// tracking").
///
/// A signal can kill the device between any two stores here, so the order of the stores matters: a store has release semantics
/// if everything before it must have taken effect. On x86-64 this costs no more than a plain store.

/// A packed queue with an in-flight record.
public typealias RecordedPackedQueue = PackedRing<InflightBuffers>

/// Offsets in a region: a header, and one entry for each slot of the ring. Bytes.
enum PackedRecordOffset {
  static let version = 8
  static let entries = 10
  /// The first free entry, and after it, in the same word, its value at the last consistent moment.
  static let free = 12
  /// Slot of the next used descriptor, its previous value, and the two wrap counters: one word of 8 bytes.
  static let used = 16

  static let header = 32
  static let entry = 32
  // In an entry.
  static let mark = 0
  static let next = 2
  static let last = 4
  static let count = 6
  static let order = 8
  /// Buffer id, flags and length.
  static let link = 16
  static let address = 24
}

/// The book of a packed ring that outlives it.
///
/// Copies each chain before it is executed, because its descriptors in the ring are overwritten by used ones, and marks its
/// entries as free after the driver can see that it was used.
///
/// Answers are published one by one. If a device dies after the position has moved and before the copy beside it has, its
/// successor checks the slot at the old position: the answer was published if that slot is no longer available. In a batch the
/// copy moves with the next answer's position.
@safe
public struct InflightBuffers: BufferBook, ~Copyable {
  @inlinable public static var isLasting: Bool { true }

  /// The version of this layout. 0: the region has not been used yet.
  static var version: UInt16 { 1 }

  private let record: InflightRecord
  @usableFromInline let region: UnsafeMutableRawPointer
  @usableFromInline let ring: UnsafeMutableRawPointer
  @usableFromInline let ringEnd: UnsafeMutableRawPointer
  /// Which entry follows a free one: a private copy of the region's links, which others could change.
  @usableFromInline let links: UnsafeMutablePointer<UInt16>
  /// The last entry of the chain that begins with one.
  @usableFromInline let lasts: UnsafeMutablePointer<UInt16>
  /// The first entry of the chain with a given buffer id. Mapped but not touched: only ids that are used cost memory.
  @usableFromInline let heads: UnsafeMutablePointer<UInt16>
  private let headArea: Mapping
  @usableFromInline var free: UInt16
  @usableFromInline var order: UInt64
  /// The position of the next used descriptor, in the form of a previous position.
  @usableFromInline var shown: UInt64
  public let begin: PackedPosition
  public let beginUsed: PackedPosition
  /// To be taken again, the next one last.
  private var left: [PackedInflightRecovery.Chain]

  /// Recovers what was left in the region. The positions come from there: those of the transport can be wrong after a crash.
  public init(
    size: UInt16, record: InflightRecord?, available: PackedPosition, used: PackedPosition, ring: UnsafeMutableRawPointer
  ) throws(QueueError) {
    guard let record, let region = unsafe record.memory.region(ofQueue: record.queue) else { throw .inflightMissing }
    guard record.memory.isPacked else { throw .inflightFormat }
    let capacity = record.memory.queueSize
    guard size <= capacity else { throw .inflightSize(recorded: capacity, size: size) }
    let recovery = unsafe PackedInflightRecovery(region: region, ring: ring, size: size, capacity: capacity)
    let found = try recovery.run(freshAt: used)
    do { headArea = try Mapping(anonymous: 65536 * MemoryLayout<UInt16>.stride) } catch { throw .outOfMemory }
    self.record = record
    unsafe self.region = region
    unsafe self.ring = ring
    unsafe ringEnd = ring + 16 * Int(size)
    unsafe links = .allocate(capacity: Int(capacity))
    unsafe lasts = .allocate(capacity: Int(capacity))
    unsafe links.initialize(repeating: capacity, count: Int(capacity))
    unsafe lasts.initialize(repeating: 0, count: Int(capacity))
    unsafe heads = headArea.base.bindMemory(to: UInt16.self, capacity: 65536)
    for (entry, next) in zip(found.free, found.free.dropFirst()) { unsafe links[Int(entry)] = next }
    free = found.free.first ?? capacity
    for chain in found.chains {
      // When the chain is freed, its entries are still linked in this order.
      for (entry, next) in zip(chain.entries, chain.entries.dropFirst()) { unsafe links[Int(entry)] = next }
      unsafe heads[Int(chain.id)] = chain.head
      unsafe lasts[Int(chain.head)] = chain.last
    }
    order = found.chains.last.map { $0.order &+ 1 } ?? 0
    shown = PackedStand(found.used).before
    beginUsed = found.used
    begin = found.used.advanced(by: found.slots, size: Int(size))
    left = found.chains.reversed()
  }

  deinit {
    unsafe links.deallocate()
    unsafe lasts.deallocate()
  }

  @inlinable @inline(__always)
  func entry(_ number: UInt16) -> UnsafeMutableRawPointer { unsafe region + (32 &+ Int(number) &* 32) }

  /// There are at least as many free entries as free slots in the ring, and that has room for the chain.
  ///
  /// Not inlined: a call costs less than the registers that this would take from the fast path.
  @inline(never)
  public mutating func take(_ id: UInt16, at place: UnsafeMutableRawPointer, span: Int) {
    KillPoint.pass(.takeBegins)
    let head = free
    var (next, last) = (head, head)
    let stop = unsafe place + 16 &* span
    // Bytes of the chain that lie at the beginning of the ring.
    let rest = unsafe stop - ringEnd
    unsafe copy(from: place, upTo: rest > 0 ? ringEnd : stop, &next, &last)
    if rest > 0 { unsafe copy(from: ring, upTo: ring + rest, &next, &last) }
    let first = unsafe entry(head)
    unsafe SharedCell<UInt64>(first + 8).storeRelaxed(order)
    unsafe SharedCell<UInt32>(first + 4).storeRelaxed(UInt32(last) | UInt32(truncatingIfNeeded: span) << 16)
    KillPoint.pass(.takeOrdered)
    // Release: the copy is complete. It is ignored as long as the entry is free.
    unsafe SharedCell<UInt8>(first).storeRelease(1)
    KillPoint.pass(.takeMarked)
    unsafe SharedCell<UInt32>(region + 12).storeRelease(UInt32(next) | UInt32(next) << 16)
    unsafe heads[Int(id)] = head
    unsafe lasts[Int(head)] = last
    free = next
    order &+= 1
  }

  /// Copies descriptors of the ring, each as a whole; the record stores the two halves in the opposite order.
  ///
  /// If they have changed since they were read for the request, a successor sees another request of the same driver, so loading
  /// them again does no harm.
  @inline(__always)
  private func copy(
    from begin: UnsafeMutableRawPointer, upTo end: UnsafeMutableRawPointer, _ next: inout UInt16, _ last: inout UInt16
  ) {
    var from = unsafe begin
    while unsafe from < end {
      let words = unsafe from.load(as: SIMD4<UInt32>.self)
      unsafe (entry(next) + 16).storeBytes(of: SIMD4(words[3], words[2], words[0], words[1]), as: SIMD4<UInt32>.self)
      last = next
      next = unsafe links[Int(next)]
      unsafe from += 16
    }
  }

  /// Not inlined, for the same reason as `take`.
  @inline(never)
  public mutating func publish(
    _ answers: UnsafeMutablePointer<PackedAnswer>, count: Int, at first: UnsafeMutableRawPointer, wrap: Bool
  ) {
    let (region, ring, ringEnd) = unsafe (region, ring, ringEnd)
    let positions = unsafe SharedCell<UInt64>(region + 16)
    var stand = PackedStand(slot: 0, wrap: wrap ? 1 << 32 : 0)
    var (free, shown) = (free, shown)
    var place = unsafe first
    for index in 0..<count {
      let answer = unsafe answers[index]
      unsafe SharedCell<UInt32>(place + 8).storeRelaxed(answer.written)
      KillPoint.pass(.answerWritten)
      unsafe SharedCell<UInt16>(place + 12).storeRelaxed(answer.id)
      KillPoint.pass(.answerNamed)
      var after = unsafe place + Int(answer.span)
      if unsafe after >= ringEnd {
        unsafe after -= ringEnd - ring
        stand.toggleWrap()
      }
      stand.slot = unsafe UInt64(UInt(bitPattern: after - ring)) &>> 4
      let head = unsafe heads[Int(answer.id)]
      let last = unsafe lasts[Int(head)]
      unsafe links[Int(last)] = free
      unsafe SharedCell<UInt16>(entry(last) + 2).storeRelease(free)
      KillPoint.pass(.answerLinked)
      // Storing this answer's positions settles the answer before it, so the list of free entries is stored after them. Those
      // of the first answer can look like a settled round of the ring, so for them the list is first.
      if index == 0 { unsafe SharedCell<UInt16>(region + 12).storeRelease(head) }
      KillPoint.pass(.answerLinked)
      positions.storeRelease(stand.now | shown)
      KillPoint.pass(.answerCounted)
      if index > 0 { unsafe SharedCell<UInt16>(region + 12).storeRelease(head) }
      KillPoint.pass(.answerCounted)
      // Release: the answer is stored, and the record says that it may have been published.
      unsafe SharedCell<UInt16>(place + 14).storeRelease(answer.flags)
      KillPoint.pass(.publishShown)
      // Release: the chain is published before its entries are free.
      unsafe SharedCell<UInt8>(entry(head)).storeRelease(0)
      KillPoint.pass(.publishFreed)
      unsafe SharedCell<UInt16>(region + 14).storeRelease(head)
      KillPoint.pass(.publishFreed)
      (free, shown) = (head, stand.before)
      unsafe place = after
    }
    positions.storeRelease(stand.now | shown)
    KillPoint.pass(.publishOver)
    (self.free, self.shown) = (free, shown)
  }

  /// A position and the previous one, as they lie in the region.
  static func word(_ now: PackedPosition, _ before: PackedPosition) -> UInt64 {
    PackedStand(now).now | PackedStand(before).before
  }

  // MARK: What was left

  public var interrupted: Int { left.count }
  public var interruptedBuffers: [(id: UInt16, span: Int)] { left.map { ($0.id, $0.descriptors.count) } }
  public func nextInterrupted() -> InterruptedChain? {
    left.last.map { InterruptedChain(id: $0.id, descriptors: $0.descriptors) }
  }
  public mutating func resume() { left.removeLast() }
}
