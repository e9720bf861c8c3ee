/// The device's side of a split virtqueue (virtio 2.6): table, available ring, used ring.
///
/// The driver owns every byte here and may change any of them at any time. So each word is read once, into a local, through a
/// `SharedCell`, and only the local is looked at; the descriptor table is never written.

/// A running split queue.
@safe
public struct SplitQueue: Virtqueue, ~Copyable {
  /// An indirect table may be longer than the queue; this is where we stop believing it (QEMU's limit, too).
  @usableFromInline static var maximumIndirectEntries: Int { 1024 }

  public let size: UInt16
  /// Takes a free-running index to its place.
  @usableFromInline let mask: Int
  private let memory: GuestMemory
  @usableFromInline var view: GuestMemoryView
  private let hasEventIndex: Bool
  @usableFromInline let hasIndirect: Bool

  @usableFromInline let table: UnsafeMutableRawPointer
  @usableFromInline let available: UnsafeMutableRawPointer
  @usableFromInline let used: UnsafeMutableRawPointer

  /// The free-running index of the next available entry to take.
  @usableFromInline var nextAvailable: UInt16
  /// The driver's index as read last; entries before it may be taken without reading it again.
  @usableFromInline var seenAvailable: UInt16
  /// The free-running index of the next used element, counting those not yet published.
  @usableFromInline var nextUsed: UInt16
  @usableFromInline var publishedUsed: UInt16
  /// `publishedUsed` at the last notification decision.
  private var decidedUsed: UInt16
  private var kicksAreSuppressed: Bool

  /// For each head: taken and not yet used. A second one would be answered into the first one's buffers.
  @usableFromInline let isTaken: UnsafeMutablePointer<Bool>

  public init(
    _ configuration: QueueConfiguration, memory: GuestMemory, features: FeatureSet, position: QueuePosition
  ) throws(QueueError) {
    let size = configuration.size
    guard size > 0, size <= 32768, size & (size - 1) == 0 else { throw .badSize(size) }
    var view = memory.view()
    func part(
      _ part: QueueError.RingPart, _ address: GuestAddress, alignment: UInt64, count: Int
    ) throws(QueueError) -> UnsafeMutableRawPointer {
      guard address.isAligned(to: alignment) else { throw .misaligned(part: part, address) }
      guard let piece = view.contiguous(address, count: count) else { throw .unmapped(part: part, address) }
      // Guest addresses and host addresses need not be aligned alike: a region can lie anywhere in its mapping.
      guard unsafe UInt(bitPattern: piece.base) % UInt(alignment) == 0 else { throw .misaligned(part: part, address) }
      return unsafe piece.base
    }
    // Both rings are taken with their event word, as the layout in memory always has room for it (virtio 2.6).
    let entries = Int(size)
    let table = unsafe try part(.descriptorTable, configuration.descriptorTable, alignment: 16, count: 16 * entries)
    let available = unsafe try part(.availableRing, configuration.availableRing, alignment: 2, count: 6 + 2 * entries)
    let used = unsafe try part(.usedRing, configuration.usedRing, alignment: 4, count: 6 + 8 * entries)
    unsafe self.table = table
    unsafe self.available = available
    unsafe self.used = used
    self.size = size
    mask = entries - 1
    self.memory = memory
    self.view = view
    self.hasEventIndex = features.contains(.eventIndex)
    self.hasIndirect = features.contains(.indirectDescriptors)
    self.nextAvailable = position.available
    self.seenAvailable = position.available
    let nextUsed = unsafe position.used ?? SharedCell<UInt16>(used + 2).loadRelaxed()
    self.nextUsed = nextUsed
    self.publishedUsed = nextUsed
    self.decidedUsed = nextUsed
    self.kicksAreSuppressed = false
    unsafe self.isTaken = .allocate(capacity: entries)
    unsafe isTaken.initialize(repeating: false, count: entries)
  }

  deinit { unsafe isTaken.deallocate() }

  public var position: QueuePosition { QueuePosition(available: nextAvailable, used: publishedUsed) }

  // MARK: Taking

  @inline(__always)
  public mutating func hasAvailable() -> Bool {
    unsafe nextAvailable != seenAvailable || SharedCell<UInt16>(available + 2).loadRelaxed() != nextAvailable
  }

  @inlinable @inline(__always)
  public mutating func pop(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    // Whatever is not plain begins anew: nothing that was read is handed on, so that no check is made on one copy and acted
    // upon with another. It also leaves the plain way without anything that it would have to keep.
    // Only the second shape is ever in memory.
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

  /// Takes a chain as drivers make them: nothing empty, nothing outside memory or across regions, room enough, an indirect
  /// table in one piece.
  /// - Returns: `nil` for any other, and when nothing is available; nothing was taken then.
  @inlinable @inline(__always)
  mutating func popPlain(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) -> Chain? {
    guard nextAvailable != seenAvailable else { return nil }
    let entry = Int(nextAvailable) & mask
    let head = unsafe SharedCell<UInt16>(available + (4 &+ entry &* 2)).loadRelaxed()
    guard head < size, unsafe !isTaken[Int(head)] else { return nil }
    unsafe isTaken[Int(head)] = true
    nextAvailable &+= 1
    guard unsafe walkPlain(head, into: segments, capacity: capacity, shape: &shape) else {
      unsafe isTaken[Int(head)] = false
      nextAvailable &-= 1
      return nil
    }
    return Chain(head: head)
  }

  /// Follows a chain as drivers make them. What it found is nothing unless it went well.
  @inlinable @inline(__always)
  mutating func walkPlain(
    _ head: UInt16, into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) -> Bool {
    var table = unsafe table
    var entries = UInt32(size)
    var descriptor = unsafe Descriptor(readingOnce: table + Int(head) &* 16)
    if descriptor.isIndirect {
      guard hasIndirect, !descriptor.hasNext, descriptor.length % 16 == 0, let place = unsafe view.place(descriptor),
        UInt(bitPattern: place) % 8 == 0
      else { return false }
      entries = descriptor.length / 16
      guard entries <= UInt32(Self.maximumIndirectEntries) else { return false }
      unsafe table = place
      unsafe descriptor = Descriptor(readingOnce: table)
    }
    // Bounds both loops, also for links that go round: each step takes a piece of the room.
    let end = unsafe segments + capacity
    var next = unsafe segments
    var bytes: UInt64 = 0

    while descriptor.isReadable {
      guard unsafe next < end, let base = unsafe view.place(descriptor) else { return false }
      unsafe next.pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      guard descriptor.hasNext, descriptor.next < entries else { return false }  // without room for a status: not plain
      unsafe next += 1
      unsafe descriptor = Descriptor(readingOnce: table + Int(descriptor.next) &* 16)
    }
    unsafe shape.writable = next
    shape.readableBytes = bytes
    while descriptor.isWritable {
      guard unsafe next < end, let base = unsafe view.place(descriptor) else { return false }
      unsafe next.pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      guard descriptor.hasNext else {
        guard bytes <= UInt64(Int32.max) else { return false }
        unsafe shape.end = next + 1
        shape.writableBytes = bytes &- shape.readableBytes
        shape.defect = nil
        return true
      }
      guard descriptor.next < entries else { return false }
      unsafe next += 1
      unsafe descriptor = Descriptor(readingOnce: table + Int(descriptor.next) &* 16)
    }
    return false  // readable after writable, or an indirect descriptor after others
  }

  /// Takes any chain, or says what is wrong with the ring. The first chain after kicks were enabled comes this way, as the
  /// driver's index was read up to the end before.
  @inline(never)
  @usableFromInline mutating func popAny(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    if nextAvailable == seenAvailable {
      // Acquire: what the driver stored before it moved idx (ring entries, descriptors, buffers) is read after it.
      let index = unsafe SharedCell<UInt16>(available + 2).loadAcquire()
      guard index != seenAvailable else { return nil }
      // Free-running: the distance is right across the wrap, and also finds an index that went back.
      guard index &- nextAvailable <= size else {
        throw .availableIndexJumped(from: nextAvailable, to: index, size: size)
      }
      seenAvailable = index
      if let chain = unsafe popPlain(into: segments, capacity: capacity, shape: &shape) {
        suppressKicks()
        return chain
      }
    }
    let entry = Int(nextAvailable) & mask
    let head = unsafe SharedCell<UInt16>(available + (4 &+ entry &* 2)).loadRelaxed()
    guard head < size else { throw .headOutOfRange(head) }
    guard unsafe !isTaken[Int(head)] else { throw .headAlreadyInFlight(head) }
    unsafe try walk(head, into: segments, capacity: capacity, shape: &shape)
    suppressKicks()
    unsafe isTaken[Int(head)] = true
    nextAvailable &+= 1
    return Chain(head: head)
  }

  /// Follows any chain from its head, and names what is wrong with it. Bounded by the length of the table it walks in, whatever
  /// the links say.
  @inline(never)
  private mutating func walk(
    _ head: UInt16, into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) {
    var table = unsafe MemorySegment(base: table, count: Int(size) &* 16)
    var tableAddress: UInt64? = nil  // guest address of an indirect table that is not in one piece
    var tableEntries = Int(size)
    var budget = tableEntries
    var isIndirect = false
    var index = Int(head)

    var stored = 0
    var readableCount = 0
    var readableBytes: UInt64 = 0
    var writableBytes: UInt64 = 0
    var sawWritable = false
    var lastWritable: UnsafeMutableRawPointer? = nil
    var lastWritableIsUnmapped = false
    var defect: Chain.Defect? = nil

    while true {
      guard budget > 0 else { throw .chainLoops(head: head) }
      budget &-= 1
      let descriptor: Descriptor
      if let tableAddress {
        guard let copy = readAcrossRegions(tableAddress &+ UInt64(index) &* 16) else {
          throw .indirectUnmapped(head: head, GuestAddress(tableAddress))
        }
        descriptor = copy
      } else {
        descriptor = unsafe Descriptor(readingOnce: table.base + index &* 16)
      }

      if descriptor.isIndirect {
        guard hasIndirect else { throw .indirectNotNegotiated(head: head) }
        guard !isIndirect else { throw .nestedIndirect(head: head) }
        guard !descriptor.hasNext else { throw .indirectWithNext(head: head) }
        let length = descriptor.length
        let limit = max(Int(size), Self.maximumIndirectEntries)
        guard length > 0, length % 16 == 0, Int(length / 16) <= limit else {
          throw .badIndirectLength(head: head, length)
        }
        // The WRITE flag of this descriptor means nothing (virtio 2.6.5.3.2).
        guard GuestAddress(descriptor.address).advanced(by: UInt64(length) - 1) != nil,
          let piece = view.find(descriptor.address)
        else { throw .indirectUnmapped(head: head, GuestAddress(descriptor.address)) }
        table = piece
        tableAddress =
          unsafe piece.count >= Int(length) && UInt(bitPattern: piece.base) % 8 == 0 ? nil : descriptor.address
        isIndirect = true
        tableEntries = Int(length / 16)
        budget = tableEntries
        index = 0
        continue
      }

      let isWritable = descriptor.hasWrite
      if isWritable {
        sawWritable = true
      } else if sawWritable {
        throw .readableAfterWritable(head: head)
      }
      // An empty descriptor is nothing to transfer; it stays out of the segments.
      if descriptor.length > 0 {
        let pieces: Int
        do throws(TranslationError) {
          pieces = unsafe try view.translate(
            descriptor.address, length: descriptor.length, into: segments + stored, capacity: capacity &- stored)
        } catch {
          pieces = 0
          if defect == nil { defect = error == .unmapped ? .unmapped : .tooManySegments }
        }
        stored &+= pieces
        if isWritable {
          writableBytes &+= UInt64(descriptor.length)
          if pieces > 0 {
            let last = unsafe segments[stored &- 1]
            unsafe lastWritable = last.base + (last.count &- 1)
            lastWritableIsUnmapped = false
          } else {
            let end = GuestAddress(descriptor.address).advanced(by: UInt64(descriptor.length) - 1)
            unsafe lastWritable = end.flatMap { unsafe view.find($0.rawValue)?.base }
            lastWritableIsUnmapped = unsafe lastWritable == nil
          }
        } else {
          readableBytes &+= UInt64(descriptor.length)
          readableCount = stored
        }
      }
      guard descriptor.hasNext else { break }
      index = Int(descriptor.next)
      guard index < tableEntries else { throw .nextOutOfRange(UInt16(descriptor.next)) }
    }

    // At most 32768 descriptors of 32-bit lengths each: the sums cannot overflow.
    guard readableBytes &+ writableBytes <= 1 << 32 else { throw .chainTooLarge(head: head) }
    guard !lastWritableIsUnmapped else { throw .statusUnmapped(head: head) }
    shape.readableBytes = readableBytes
    shape.writableBytes = writableBytes
    shape.defect = defect
    if defect != nil {
      shape.readableBytes = 0
      readableCount = 0
      stored = 0
      if let lastWritable = unsafe lastWritable {
        unsafe segments.pointee = MemorySegment(base: lastWritable, count: 1)
        stored = 1
      }
    }
    unsafe shape.writable = segments + readableCount
    unsafe shape.end = segments + stored
  }

  /// A descriptor of an indirect table that is misaligned or split over regions, gathered byte by byte.
  @inline(never)
  private mutating func readAcrossRegions(_ address: UInt64) -> Descriptor? {
    var words: (UInt64, UInt64) = (0, 0)
    let complete = unsafe withUnsafeMutableBytes(of: &words) { bytes in
      for offset in 0..<16 {
        guard let byte = view.find(address &+ UInt64(offset)) else { return false }
        unsafe bytes[offset] = byte.base.load(as: UInt8.self)
      }
      return true
    }
    return complete ? Descriptor(words.0, words.1) : nil
  }

  // MARK: Giving back

  @inlinable @inline(__always)
  public mutating func push(_ chain: consuming Chain, written: UInt32) {
    let head = chain.complete()
    let element = unsafe used + (4 &+ (Int(nextUsed) & mask) &* 8)
    unsafe SharedCell<UInt32>(element).storeRelaxed(UInt32(head))
    unsafe SharedCell<UInt32>(element + 4).storeRelaxed(written)
    unsafe isTaken[Int(head)] = false
    nextUsed &+= 1
  }

  @inlinable @inline(__always)
  public var unpublished: Int { Int(nextUsed &- publishedUsed) }

  @inline(__always)
  public mutating func publish() {
    guard nextUsed != publishedUsed else { return }
    // Release: data, status bytes and used elements are visible before the index that promises them (virtio 2.6.8.2).
    unsafe SharedCell<UInt16>(used + 2).storeRelease(nextUsed)
    publishedUsed = nextUsed
  }

  @inline(__always)
  public mutating func needsCall() -> Bool {
    guard publishedUsed != decidedUsed else { return false }
    let old = decidedUsed
    decidedUsed = publishedUsed
    // Full: our store of used.idx comes before this load of the driver's wish. The driver stores its wish and then loads
    // used.idx; with anything weaker both could miss each other and the driver would sleep on finished work.
    fullFence()
    guard hasEventIndex else { return unsafe SharedCell<UInt16>(available).loadRelaxed() & 1 == 0 }
    let event = unsafe SharedCell<UInt16>(available + (4 &+ Int(size) &* 2)).loadRelaxed()
    // Some index in (old, published] passed the event: right across the wrap (virtio 2.6.7).
    return publishedUsed &- event &- 1 < publishedUsed &- old
  }

  // MARK: Kicks

  private mutating func suppressKicks() {
    guard !kicksAreSuppressed else { return }
    kicksAreSuppressed = true
    // With event indices a stale avail_event suppresses by itself, and the flags stay 0 (virtio 2.6.10.2).
    if !hasEventIndex { unsafe SharedCell<UInt16>(used).storeRelaxed(1) }
  }

  @inline(__always)
  public mutating func enableKicks() -> Bool {
    kicksAreSuppressed = false
    if hasEventIndex {
      unsafe SharedCell<UInt16>(used + (4 &+ Int(size) &* 8)).storeRelaxed(nextAvailable)
    } else {
      unsafe SharedCell<UInt16>(used).storeRelaxed(0)
    }
    // Full: the wish to be kicked is visible before idx is looked at again. The driver moves idx and then looks at the wish.
    fullFence()
    return unsafe SharedCell<UInt16>(available + 2).loadRelaxed() != nextAvailable
  }
}
