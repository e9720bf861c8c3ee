/// The device's side of a packed virtqueue (virtio 2.7): one ring of descriptors, which both sides write, and an event
/// suppression structure for each side.
///
/// The driver owns every byte here and may change any of them at any time. So each word is read once, into a local, through a
/// `SharedCell`, and only the local is used.

/// A packed queue without an in-flight record.
public typealias PackedQueue = PackedRing<PrivateBuffers>

/// A running packed queue. - Parameter Book: its record of the chains that it has taken.
@safe
public struct PackedRing<Book: BufferBook & ~Copyable>: Virtqueue, ~Copyable {
  @inlinable public static var isRecorded: Bool { Book.isLasting }

  /// Descriptors of the ring: 1 … 32768.
  public let size: UInt16
  private let memory: GuestMemory
  @usableFromInline let hasEventIndex: Bool
  @usableFromInline let hasIndirect: Bool
  @usableFromInline var view: GuestMemoryView

  /// The descriptor ring, and where it ends.
  @usableFromInline let ring: UnsafeMutableRawPointer
  @usableFromInline let ringEnd: UnsafeMutableRawPointer
  @usableFromInline let driverEvents: SharedCell<UInt32>
  @usableFromInline let deviceEvents: SharedCell<UInt32>

  /// For each buffer id: how much of the ring its chain in flight covers, in bytes; 0: there is none. All sums of this type are
  /// in bytes, 16 for a slot: the unit of addresses and of the free room.
  @usableFromInline let spans: UnsafeMutablePointer<UInt32>
  /// The driver chooses ids freely, so there are 65536 of them. Mapped but not touched: only ids that are used cost memory.
  private let spanArea: Mapping

  /// The next slot to take, and the flags that say that its descriptor is available.
  @usableFromInline var next: UnsafeMutableRawPointer
  @usableFromInline var availableFlags: UInt16
  /// The same flags in their place in a descriptor's last word, as the fast path compares them; a value that never matches
  /// while the driver is asked to kick.
  @usableFromInline var takeMark: UInt32 = PackedFlags.noMark
  /// The slot of the next used descriptor, counting those not yet published, and the flags that say that it is used.
  @usableFromInline var nextUsed: UnsafeMutableRawPointer
  @usableFromInline var usedFlags: UInt16
  /// Bytes of the ring that are free: neither a chain nor an unpublished answer covers them.
  @usableFromInline var room: UInt64
  /// Bytes of the whole ring.
  @usableFromInline let ringBytes: UInt64
  /// Running count of used bytes of the ring: at the last publication, and at the last decision whether to notify.
  @usableFromInline var publishedBytes: UInt64 = 0
  @usableFromInline var decidedBytes: UInt64 = 0

  public var unpublished = 0
  /// Running count of published chains, modulo 2^16.
  @usableFromInline var publishedChains: UInt16 = 0
  @usableFromInline var batch = PackedBatch.empty
  /// The slot of the first used descriptor that is not published, and the flags that say that it is used.
  @usableFromInline var firstUnpublished: UnsafeMutableRawPointer
  @usableFromInline var firstUsedFlags: UInt16
  /// That descriptor's half with length, buffer ID and flags, if the book does not have them: stored as a whole, so that a
  /// process that dies leaves either the driver's descriptor or the answer.
  @usableFromInline var firstAnswer: UInt64 = 0
  /// Answers that are not published, if the book outlives the ring; it has as many places as the ring has slots.
  @usableFromInline let answers: UnsafeMutablePointer<PackedAnswer>
  /// For a driver that relies on the order: the used descriptor that stands for the chains pushed last, the flags that publish
  /// it, and whether another chain may join them.
  @usableFromInline var batchPlace: UnsafeMutableRawPointer
  @usableFromInline var batchFlags: UInt16 = 0
  @usableFromInline var batchIsWhole = false

  @usableFromInline var book: Book
  /// `publishedBytes` at the last call of `takeWritten`.
  private var notedBytes: UInt64 = 0

  public init(
    _ configuration: QueueConfiguration, memory: GuestMemory, features: FeatureSet, position: QueuePosition,
    record: InflightRecord? = nil
  ) throws(QueueError) {
    let size = configuration.size
    guard features.contains(.packedRing) else { throw .otherFormat }
    guard size > 0, size <= 32768 else { throw .badPackedSize(size) }
    var view = memory.view()
    func part(
      _ part: QueueError.RingPart, _ address: GuestAddress, alignment: UInt64, count: Int, access: MemoryAccess
    ) throws(QueueError) -> UnsafeMutableRawPointer {
      guard address.isAligned(to: alignment) else { throw .misaligned(part: part, address) }
      guard let piece = view.contiguous(address, count: count, for: access) else { throw .unmapped(part: part, address) }
      // Guest addresses and host addresses need not be aligned alike: a region can lie anywhere in its mapping.
      guard unsafe UInt(bitPattern: piece.base) % UInt(alignment) == 0 else { throw .misaligned(part: part, address) }
      return unsafe piece.base
    }
    // One offset steps through an indirect table and through its segments.
    precondition(MemoryLayout<MemorySegment>.stride == 16, "a segment is not as large as a descriptor")
    let bytes = 16 * Int(size)
    let ring = unsafe try part(
      .descriptorRing, configuration.descriptorTable, alignment: 16, count: bytes, access: [.read, .write])
    let driver = unsafe try part(.driverEvents, configuration.availableRing, alignment: 4, count: 4, access: .read)
    let device = unsafe try part(.deviceEvents, configuration.usedRing, alignment: 4, count: 4, access: .write)
    // Guest memory has no used index. If the transport does not give it, nothing was in flight.
    var available = PackedPosition(rawValue: position.available)
    var used = PackedPosition(rawValue: position.used ?? position.available)
    // A front-end that knows only split rings (user-mode Linux) says 0 for a new ring, which is also the start of every second
    // round. A driver that has come that far wrote AVAIL or USED into the first slot a round earlier; in a new ring they are 0.
    if available.rawValue == 0, used.rawValue == 0,
      unsafe SharedCell<UInt16>(ring + 14).loadRelaxed() & PackedFlags.both == 0
    {
      (available, used) = (.start, .start)
    }
    let book = unsafe try Book(size: size, record: record, available: available, used: used, ring: ring)
    guard book.begin.slot < Int(size), book.beginUsed.slot < Int(size),
      let inFlight = book.begin.distance(from: book.beginUsed, size: Int(size))
    else { throw .badPosition(available: book.begin, used: book.beginUsed, size: size) }
    do { spanArea = try Mapping(anonymous: 65536 * MemoryLayout<UInt32>.stride) } catch { throw .outOfMemory }
    unsafe spans = spanArea.base.bindMemory(to: UInt32.self, capacity: 65536)
    for buffer in book.interruptedBuffers {
      unsafe spans[Int(buffer.id)] = UInt32(truncatingIfNeeded: buffer.span &* 16)
    }
    let answers = Book.isLasting ? Int(size) : 1
    unsafe self.answers = .allocate(capacity: answers)
    unsafe self.answers.initialize(repeating: PackedAnswer(), count: answers)
    self.size = size
    self.memory = memory
    hasEventIndex = features.contains(.eventIndex)
    hasIndirect = features.contains(.indirectDescriptors)
    self.view = view
    unsafe self.ring = ring
    unsafe ringEnd = ring + bytes
    driverEvents = unsafe SharedCell(driver)
    deviceEvents = unsafe SharedCell(device)
    unsafe next = ring + 16 * book.begin.slot
    availableFlags = PackedFlags.whenAvailable(book.begin.wrap)
    unsafe nextUsed = ring + 16 * book.beginUsed.slot
    usedFlags = PackedFlags.whenUsed(book.beginUsed.wrap)
    unsafe firstUnpublished = nextUsed
    firstUsedFlags = usedFlags
    unsafe batchPlace = nextUsed
    room = UInt64(bytes) - UInt64(inFlight) * 16
    ringBytes = UInt64(bytes)
    self.book = book
  }

  deinit { unsafe answers.deallocate() }

  // MARK: Positions

  @inlinable
  func slot(of place: UnsafeMutableRawPointer) -> Int { unsafe (place - ring) / 16 }

  @inlinable var available: PackedPosition {
    unsafe PackedPosition(slot: slot(of: next), wrap: availableFlags == PackedFlags.available)
  }
  /// Including answers that are not published.
  @inlinable var answered: PackedPosition {
    unsafe PackedPosition(slot: slot(of: nextUsed), wrap: usedFlags != 0)
  }
  @inlinable var published: PackedPosition {
    guard batch != .none else { return answered }
    return unsafe PackedPosition(slot: slot(of: firstUnpublished), wrap: firstUsedFlags != 0)
  }

  public var position: QueuePosition { QueuePosition(available: available, used: published) }

  /// Only a device that answers in the order of the requests hands chains back, and then nothing after them was published.
  public func position(handingBack count: UInt16) -> QueuePosition {
    count == 0 ? position : QueuePosition(available: published, used: published)
  }

  // MARK: Taking

  @inlinable @inline(__always)
  public mutating func hasAvailable() -> Bool {
    let flags = unsafe SharedCell<UInt16>(next + 14).loadRelaxed()
    return flags & PackedFlags.both == availableFlags
  }

  @inlinable @inline(__always)
  public mutating func pop(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    // A chain that the fast path does not handle is read again from the start, as in a split ring, so that no copy is checked
    // and another one used.
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

  /// Takes any chain, or throws what is wrong with the ring. The first chain after kicks were enabled takes this path.
  @inlinable @inline(never)
  mutating func popAny(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    guard hasAvailable() else { return nil }
    // The driver may have reused the slots of answers that are only counted as unpublished.
    if batch == .none { giveBack() }
    if takeMark == PackedFlags.noMark {
      suppressKicks()
      if let chain = unsafe popPlain(into: segments, capacity: capacity, shape: &shape) { return chain }
    }
    return unsafe try popOther(into: segments, capacity: capacity, shape: &shape)
  }

  /// Takes the chain: nothing that was read about it is read again.
  ///
  /// - Parameters:
  ///   - span: of the ring, 1 … the number of free slots, bytes.
  @inlinable @inline(__always)
  mutating func take(_ id: UInt16, span: UInt64) -> Chain {
    unsafe spans[Int(id)] = UInt32(truncatingIfNeeded: span)
    if Book.isLasting { unsafe book.take(id, at: next, span: Int(span / 16)) }
    room &-= span
    var after = unsafe next + Int(truncatingIfNeeded: span)
    if unsafe after >= ringEnd {
      unsafe after -= Int(ringBytes)
      availableFlags ^= PackedFlags.both
      takeMark ^= PackedFlags.bothMarks
    }
    unsafe next = after
    return Chain(head: id)
  }

  /// The device polls the ring anyway.
  @inlinable
  mutating func suppressKicks() {
    takeMark = UInt32(availableFlags) << 16
    deviceEvents.storeRelaxed(PackedEvent.never.rawValue.littleEndian)
  }

  public var interrupted: Int { book.interrupted }

  // MARK: Giving back

  /// Writes the used descriptor to the next slot that is not used. Its flags tell the driver that it is used (virtio 2.7.2);
  /// those of the first descriptor of a batch, which the driver checks first, are left for `publish`.
  @inlinable @inline(__always)
  public mutating func push(_ chain: consuming Chain, written: UInt32) {
    let id = chain.complete()
    let place = unsafe nextUsed
    let span = unsafe spans[Int(id)]
    // WRITE says that the length is valid (virtio 2.7.3).
    let flags = written != 0 ? usedFlags | PackedFlags.write : usedFlags
    if Book.isLasting {
      // Written when it is published: after a crash, another answer may be the next one to be published.
      unsafe answers[unpublished] = PackedAnswer(
        id: id, flags: flags, span: span, written: written)
    } else {
      let answer = UInt64(written) | UInt64(id) << 32 | UInt64(flags) << 48
      if _fastPath(batch != .empty) {
        // The driver reads used descriptors in order, and has not seen the first one of the batch. If there are no batches:
        // Release: data and status byte are visible before the descriptor.
        unsafe SharedCell<UInt64>(place + 8).storeRelease(answer)
      } else {
        batch = .begun
        firstAnswer = answer
      }
    }
    unpublished &+= 1
    goOver(id, span: span)
  }

  /// A chain has been answered.
  @inlinable @inline(__always)
  mutating func goOver(_ id: UInt16, span: UInt32) {
    unsafe spans[Int(id)] = 0
    var after = unsafe nextUsed + Int(span)
    if unsafe after >= ringEnd {
      unsafe after -= Int(ringBytes)
      usedFlags ^= PackedFlags.both
    }
    unsafe nextUsed = after
  }

  @inlinable @inline(__always)
  public var pushes: UInt16 { publishedChains &+ UInt16(truncatingIfNeeded: unpublished) }

  @inlinable @inline(__always)
  public mutating func publish() {
    guard unpublished != 0 else { return }
    publishedChains &+= UInt16(truncatingIfNeeded: unpublished)
    if Book.isLasting {
      unsafe book.publish(answers, count: unpublished, at: firstUnpublished, wrap: firstUsedFlags != 0)
    } else if batch == .begun {
      // Release: data, status bytes and all other used descriptors of the batch are visible before the one that the driver
      // waits for (virtio 2.7.21).
      unsafe SharedCell<UInt64>(firstUnpublished + 8).storeRelease(firstAnswer)
      batch = .empty
    }
    unpublished = 0
    giveBack()
  }

  /// The slots of published answers belong to the driver.
  @inlinable @inline(__always)
  mutating func giveBack() {
    let bytes = unpublishedBytes
    room &+= bytes
    publishedBytes &+= bytes
    unsafe firstUnpublished = nextUsed
    firstUsedFlags = usedFlags
  }

  /// Bytes of the ring that answers since the last publication cover: from none to the whole ring.
  @inlinable var unpublishedBytes: UInt64 {
    let bytes = unsafe UInt64(bitPattern: Int64(nextUsed - firstUnpublished))
    return usedFlags == firstUsedFlags ? bytes : bytes &+ ringBytes
  }

  @inlinable public static var canPublishAtPush: Bool { !Book.isLasting }

  public mutating func publishAtPush() {
    precondition(Self.canPublishAtPush && unpublished == 0, "a record publishes answers in batches")
    batch = .none
  }

  @inlinable @inline(__always)
  public mutating func needsCall() -> Bool {
    let passed = publishedBytes &- decidedBytes
    guard passed != 0 else { return false }
    decidedBytes = publishedBytes
    // Full: our store of the flags comes before this load of the driver's event suppression. The driver stores that and then
    // checks the flags; with anything weaker both could miss each other's store, and the driver would sleep on finished work.
    fullFence()
    // Offset and flags in one load, because the driver may write them one after the other.
    let wish = PackedEvent(rawValue: UInt32(littleEndian: driverEvents.loadRelaxed()))
    return wish.isDue(at: published, passed: passed / 16, size: size, hasEventIndex: hasEventIndex)
  }

  /// Used descriptors lie anywhere between the first and the last one; those pushed and not yet published are reported again
  /// when their flags are written.
  public mutating func takeWritten(_ each: (_ area: WrittenArea, _ offset: Int, _ count: Int) -> Void) {
    each(.device, 0, 4)
    let count = Int(min(publishedBytes &+ unpublishedBytes &- notedBytes, ringBytes) / 16)
    let first = unsafe (slot(of: nextUsed) &+ Int(size) &- count) % Int(size)
    let upToEnd = min(count, Int(size) - first)
    if upToEnd > 0 { each(.descriptors, 16 * first, 16 * upToEnd) }
    if count > upToEnd { each(.descriptors, 0, 16 * (count - upToEnd)) }
    notedBytes = publishedBytes
  }

  // MARK: Kicks

  @inlinable @inline(__always)
  public mutating func enableKicks() -> Bool {
    takeMark = PackedFlags.noMark
    deviceEvents.storeRelaxed(
      (hasEventIndex ? PackedEvent.passing(available) : PackedEvent.always).rawValue.littleEndian)
    // Full: the request for kicks is visible before the flags are checked again. The driver makes a chain available and then
    // checks whether kicks are wanted.
    fullFence()
    return hasAvailable()
  }
}

/// How far the batch of answers is that `publish` makes visible.
@usableFromInline enum PackedBatch: UInt8 {
  /// The next answer begins it, and is kept back.
  case empty
  /// Its first answer is kept back.
  case begun
  /// There are no batches: `push` publishes, and the driver has seen what is counted as unpublished.
  case none
}

/// An answer between `push` and `publish`.
public struct PackedAnswer {
  @usableFromInline var id: UInt16 = 0
  @usableFromInline var flags: UInt16 = 0
  /// Bytes of the ring.
  @usableFromInline var span: UInt32 = 0
  @usableFromInline var written: UInt32 = 0

  @inlinable init() {}
  @inlinable init(id: UInt16, flags: UInt16, span: UInt32, written: UInt32) {
    self.id = id
    self.flags = flags
    self.span = span
    self.written = written
  }
}
