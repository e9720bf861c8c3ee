/// The book of a packed ring that outlives it: the region of a packed queue as vhost-user lays it out ("Inflight I/O
/// tracking").
///
/// The device can end between any two stores here, by a signal, so the order of the program is the order that counts: a store
/// has release semantics where everything earlier must have taken effect. On x86-64 it costs no more than others.

/// A packed queue with an in-flight record.
public typealias RecordedPackedQueue = PackedRing<InflightBuffers>

/// Where things are in a region: a header and one entry for each slot of the ring.
enum PackedRecordOffset {
  static let version = 8
  static let entries = 10
  /// The first free entry, and after it, in the same word, its value at the last moment when nothing was half done.
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
/// successor checks the slot where it was: the answer was published if that slot is no longer available.
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
  /// The first entry of the chain with a buffer id. Mapped, not touched: only ids that are used cost memory.
  @usableFromInline let heads: UnsafeMutablePointer<UInt16>
  private let headArea: Mapping
  @usableFromInline var free: UInt16
  @usableFromInline var order: UInt64
  /// Where the next used descriptor goes, in its form as the previous position.
  @usableFromInline var shown: UInt64
  public let begin: PackedPosition
  public let beginUsed: PackedPosition
  /// To be taken again, the next one last.
  private var left: [PackedInflightRecovery.Chain]

  /// Recovers what was left in the region. The positions come from there: what the transport was told can be wrong after a
  /// crash.
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
      // When it is freed, its entries follow each other as before.
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

  /// Free entries are never fewer than free slots of the ring, which has room for the chain.
  @inlinable @inline(__always)
  public mutating func take(_ id: UInt16, at place: UnsafeMutableRawPointer, span: Int) {
    KillPoint.pass(.takeBegins)
    let head = free
    var (next, last) = (head, head)
    var from = unsafe place
    for _ in 0..<span {
      let to = unsafe entry(next)
      // If the descriptors have changed since they were read for the request, a successor sees another request of the same
      // driver.
      let rest = unsafe SharedCell<UInt64>(from + 8).loadRelaxed()
      unsafe SharedCell<UInt64>(to + 24).storeRelaxed(SharedCell<UInt64>(from).loadRelaxed())
      unsafe SharedCell<UInt64>(to + 16).storeRelaxed(rest >> 32 | rest << 32)
      last = next
      next = unsafe links[Int(next)]
      unsafe from += 16
      if unsafe from == ringEnd { unsafe from = ring }
    }
    let first = unsafe entry(head)
    unsafe SharedCell<UInt64>(first + 8).storeRelaxed(order)
    unsafe SharedCell<UInt16>(first + 4).storeRelaxed(last)
    unsafe SharedCell<UInt16>(first + 6).storeRelaxed(UInt16(truncatingIfNeeded: span))
    KillPoint.pass(.takeOrdered)
    // Release: the copy is complete. It means nothing as long as the entry is free.
    unsafe SharedCell<UInt8>(first).storeRelease(1)
    KillPoint.pass(.takeMarked)
    unsafe SharedCell<UInt32>(region + 12).storeRelease(UInt32(next) | UInt32(next) << 16)
    unsafe heads[Int(id)] = head
    unsafe lasts[Int(head)] = last
    free = next
    order &+= 1
  }

  @inlinable @inline(__always)
  public mutating func willShow(_ id: UInt16, next: PackedStand) {
    let head = unsafe heads[Int(id)]
    let last = unsafe lasts[Int(head)]
    unsafe links[Int(last)] = free
    unsafe SharedCell<UInt16>(entry(last) + 2).storeRelease(free)
    KillPoint.pass(.answerLinked)
    unsafe SharedCell<UInt16>(region + 12).storeRelease(head)
    KillPoint.pass(.answerLinked)
    free = head
    unsafe SharedCell<UInt64>(region + 16).storeRelease(next.now | shown)
    KillPoint.pass(.answerCounted)
  }

  @inlinable @inline(__always)
  public mutating func didShow(_ id: UInt16, next: PackedStand) {
    unsafe SharedCell<UInt8>(entry(free)).storeRelease(0)
    KillPoint.pass(.publishFreed)
    unsafe SharedCell<UInt32>(region + 12).storeRelease(UInt32(free) | UInt32(free) << 16)
    KillPoint.pass(.publishFreed)
    // Release: what was published is free.
    unsafe SharedCell<UInt64>(region + 16).storeRelease(next.now | next.before)
    KillPoint.pass(.publishOver)
    shown = next.before
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
