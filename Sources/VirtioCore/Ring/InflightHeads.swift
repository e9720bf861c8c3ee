/// The book of a split ring that outlives it: the region of a split queue as vhost-user lays it out ("Inflight I/O tracking").
///
/// A signal can kill the device between any two stores here, so the order of the stores matters: a store has release semantics
/// if everything before it must have taken effect. On x86-64 this costs no more than a plain store.

/// The book of a split ring that outlives it.
///
/// Records each head as taken before its request is executed, and as free after the driver can see that it was used.
///
/// The heads of a batch are linked, starting with the one that was answered last, each to the one answered before it. If a
/// device dies after the used index has moved and before the record's copy of it has, its successor follows the links and frees
/// as many heads as the two differ by.
@safe
public struct InflightHeads: HeadBook, ~Copyable {
  @inlinable public static var isLasting: Bool { true }

  /// The version of this layout. 0: the region has not been used yet.
  static var version: UInt16 { 1 }

  private let record: InflightRecord
  /// Where the region begins.
  @usableFromInline let region: UnsafeMutableRawPointer
  public let begin: UInt64
  public let beginUsed: UInt16
  /// To be taken again, the next one last.
  private var left: [UInt16]

  /// Recovers what was left in the region. The positions come from the region and from the used index: those of the transport
  /// can be wrong after a crash.
  public init(
    size: UInt16, record: InflightRecord?, position: QueuePosition, indices: SplitIndices
  ) throws(QueueError) {
    guard let record, let region = unsafe record.memory.region(ofQueue: record.queue) else { throw .inflightMissing }
    guard !record.memory.isPacked else { throw .inflightFormat }
    guard size <= record.memory.queueSize else {
      throw .inflightSize(recorded: record.memory.queueSize, size: size)
    }
    let recovery = unsafe InflightRecovery(region: region, size: size, capacity: record.memory.queueSize)
    let left = try recovery.run(indices)
    let next = indices.used &+ UInt16(truncatingIfNeeded: left.count)
    self.record = record
    unsafe self.region = region
    beginUsed = indices.used
    // Greater than every order that was found, and with the ring's index in its low bits.
    let first = left.last.map { $0.order &+ 1 } ?? 0
    begin = first &+ UInt64(next &- UInt16(truncatingIfNeeded: first))
    self.left = left.reversed().map(\.head)
  }

  // MARK: A head's entry

  @inlinable @inline(__always)
  func entry(_ head: UInt16) -> UnsafeMutableRawPointer { unsafe region + (16 &+ Int(head) &* 16) }

  /// Whether the record marks the head as in flight. - Parameter head: smaller than the ring's size.
  @inlinable @inline(__always)
  public func isTaken(_ head: UInt16) -> Bool {
    // A plain load is enough, and cheaper: the value is only tested, so loading it again does no harm.
    unsafe entry(head).load(as: UInt8.self) != 0
  }

  @inlinable @inline(__always)
  public func take(_ head: UInt16, order: UInt64) {
    let entry = unsafe entry(head)
    KillPoint.pass(.takeBegins)
    unsafe SharedCell<UInt64>(entry + 8).storeRelaxed(order)
    KillPoint.pass(.takeOrdered)
    // Release: a reader of the mark also sees the order, and the marks of all heads that were taken before.
    unsafe SharedCell<UInt8>(entry).storeRelease(1)
    KillPoint.pass(.takeMarked)
  }

  /// Rare, and not inlined: otherwise the fast path would keep the entry's address on the stack for it; and mutating, so that it
  /// does not keep the region's either.
  @inline(never)
  public mutating func takeBack(_ head: UInt16) { unsafe SharedCell<UInt8>(entry(head)).storeRelease(0) }

  @inlinable @inline(__always)
  public func answer(_ head: UInt16) {
    let last = unsafe SharedCell<UInt16>(region + 12)
    unsafe SharedCell<UInt16>(entry(head) + 6).storeRelaxed(last.loadRelaxed())
    KillPoint.pass(.answerLinked)
    // Release: the link is stored, and the previous batch is complete.
    last.storeRelease(head)
    KillPoint.pass(.answerCounted)
  }

  @inlinable @inline(__always)
  public func didPublish(from old: UInt16, to used: UInt16) {
    var place = unsafe Int(SharedCell<UInt16>(region + 12).loadRelaxed()) &* 16
    var left = Int(used &- old)
    // Sixteen at a time: otherwise the loop counter would be a fifth of the work.
    while left >= 16 {
      place = freeEight(freeEight(place))
      left &-= 16
    }
    if left >= 8 {
      place = freeEight(place)
      left &-= 8
    }
    while left > 0 {
      place = free(place)
      left &-= 1
    }
    // Release: the whole batch is free.
    unsafe SharedCell<UInt16>(region + 14).storeRelease(used)
    KillPoint.pass(.publishOver)
  }

  /// Frees one head of a batch. - Parameter place: of its entry, from the first. - Returns: the next one's.
  ///
  /// Other processes can write to the links, which are followed unchecked: any link leads to mapped memory (see
  /// `InflightMemory`). So a plain load is enough here, too.
  @inlinable @inline(__always)
  func free(_ place: Int) -> Int {
    let entry = unsafe region + (16 &+ place)
    let next = unsafe Int(entry.load(fromByteOffset: 6, as: UInt16.self)) &* 16
    // Release: the driver can see that it was used.
    unsafe SharedCell<UInt8>(entry).storeRelease(0)
    KillPoint.pass(.publishFreed)
    return next
  }

  @inlinable @inline(__always)
  func freeEight(_ place: Int) -> Int { free(free(free(free(free(free(free(free(place)))))))) }

  // MARK: What was left

  public var interrupted: Int { left.count }
  public var nextInterrupted: UInt16? { left.last }
  public mutating func resume() { left.removeLast() }
}
