/// How a packed ring pops chains and resolves their buffers (virtio 2.7.6, 2.7.7).

extension PackedRing where Book: ~Copyable {
  /// An indirect table may be longer than the queue; this is the longest that is accepted, as in a split ring.
  @inlinable static var maximumIndirectEntries: Int { 1024 }

  /// The fast path, for chains as drivers make them: nothing empty, nothing outside memory or across regions, enough room, an
  /// indirect table in one piece.
  /// - Returns: `nil` for any other chain, and if nothing is available or kicks are not suppressed; nothing was taken then.
  @inlinable @inline(__always)
  mutating func popPlain(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) -> Chain? {
    let first = unsafe next
    // Acquire: what the driver stored before the flags (the rest of the descriptor, the descriptors that follow, buffers) is
    // read after them. Their half of the descriptor is read as a whole, so that flags, id and length belong together.
    let head = unsafe PackedDescriptor(high: SharedCell<UInt64>(first + 8).loadAcquire(), at: first)
    guard head.link & PackedFlags.bothMarks == takeMark else { return nil }
    if head.isIndirect {
      guard unsafe walkPlainTable(head, into: segments, capacity: capacity, shape: &shape), hasRoom(16, for: head.id) else {
        return nil
      }
      return take(head.id, span: 16)
    }
    guard let id = unsafe walkPlainList(head, at: first, into: segments, capacity: capacity, shape: &shape) else { return nil }
    // Each slot became one segment of the same size. A list that wraps around the ring more than once is longer than there can
    // be room for.
    let span = unsafe UInt64(truncatingIfNeeded: UnsafeRawPointer(shape.end) - UnsafeRawPointer(segments))
    guard hasRoom(span, for: id) else { return nil }
    return take(id, span: span)
  }

  /// Whether there is room for a chain beside those in flight. A slot is free once its answer is published, and not before: if
  /// a driver reused it sooner, there could be more answers between two publications than there is room to record.
  @inlinable @inline(__always)
  func hasRoom(_ span: UInt64, for id: UInt16) -> Bool {
    unsafe spans[Int(id)] == 0 && span <= room
  }

  /// Follows a list of descriptors in the ring. Each takes a segment, so the walk ends even if the list wraps around.
  /// - Returns: its buffer id, which is that of its last descriptor.
  @inlinable @inline(__always)
  mutating func walkPlainList(
    _ head: PackedDescriptor, at first: UnsafeMutableRawPointer, into segments: UnsafeMutablePointer<MemorySegment>,
    capacity: Int, shape: inout ChainShape
  ) -> UInt16? {
    var descriptor = head
    var place = unsafe first
    let end = unsafe segments + capacity
    var next = unsafe segments
    var bytes: UInt64 = 0
    while descriptor.isReadable {
      guard let base = unsafe view.place(descriptor.address, length: descriptor.length) else { return nil }
      unsafe next.pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      unsafe next += 1
      guard descriptor.hasNext, unsafe next < end else { return nil }  // no descriptor for a status: not plain
      unsafe place += 16
      if unsafe place == ringEnd { unsafe place = ring }
      unsafe descriptor = PackedDescriptor(readingOnce: place)
    }
    unsafe shape.writable = next
    shape.readableBytes = bytes
    while descriptor.isWritable {
      guard let base = unsafe view.place(descriptor.address, length: descriptor.length) else { return nil }
      unsafe next.pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      unsafe next += 1
      guard descriptor.hasNext else {
        guard bytes <= UInt64(Int32.max) else { return nil }
        unsafe shape.end = next
        shape.writableBytes = bytes &- shape.readableBytes
        shape.defect = nil
        return descriptor.id
      }
      guard unsafe next < end else { return nil }
      unsafe place += 16
      if unsafe place == ringEnd { unsafe place = ring }
      unsafe descriptor = PackedDescriptor(readingOnce: place)
    }
    return nil  // readable after writable, or an indirect descriptor after others
  }

  /// Walks an indirect table, whose entries are consecutive and have no flag except WRITE (virtio 2.7.7).
  @inlinable @inline(__always)
  mutating func walkPlainTable(
    _ head: PackedDescriptor, into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) -> Bool {
    guard hasIndirect, !head.hasNext, head.length % 16 == 0, head.length <= UInt32(Self.maximumIndirectEntries) &* 16,
      let table = unsafe view.place(head.address, length: head.length), UInt(bitPattern: table) % 8 == 0,
      Int(head.length / 16) <= capacity
    else { return false }
    let end = Int(head.length)
    // An entry is as large as a segment, so one offset serves both.
    let room = UnsafeMutableRawPointer(segments)
    var offset = 0
    var bytes: UInt64 = 0
    var descriptor = unsafe PackedDescriptor(readingOnce: table)
    while !descriptor.hasWrite {
      guard let base = unsafe view.place(descriptor.address, length: descriptor.length) else { return false }
      unsafe Self.segment(room, offset).pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      offset &+= 16
      guard offset != end else { return false }
      unsafe descriptor = PackedDescriptor(readingOnce: table + offset)
    }
    unsafe shape.writable = Self.segment(room, offset)
    shape.readableBytes = bytes
    while descriptor.hasWrite {
      guard let base = unsafe view.place(descriptor.address, length: descriptor.length) else { return false }
      unsafe Self.segment(room, offset).pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      offset &+= 16
      guard offset != end else {
        guard bytes <= UInt64(Int32.max) else { return false }
        unsafe shape.end = Self.segment(room, offset)
        shape.writableBytes = bytes &- shape.readableBytes
        shape.defect = nil
        return true
      }
      unsafe descriptor = PackedDescriptor(readingOnce: table + offset)
    }
    return false  // readable after writable
  }

  /// - Parameter offset: bytes, a multiple of a segment's.
  @inlinable @inline(__always)
  static func segment(_ room: UnsafeMutableRawPointer, _ offset: Int) -> UnsafeMutablePointer<MemorySegment> {
    unsafe (room + offset).assumingMemoryBound(to: MemorySegment.self)
  }

  /// Takes an available chain that the fast path does not handle, or throws what is wrong with it.
  @usableFromInline mutating func popOther(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    let first = unsafe slot(of: next)
    let (base, size) = unsafe (ring, Int(size))
    let head = unsafe PackedDescriptor(high: SharedCell<UInt64>(next + 8).loadAcquire(), at: next)
    // The caller saw it available. If the driver has taken it back since, nothing happens.
    guard head.flags & PackedFlags.both == availableFlags else { return nil }
    let (id, span) = unsafe try walk(
      UInt16(truncatingIfNeeded: first), count: size, into: segments, capacity: capacity, shape: &shape
    ) { index in
      guard index > 0 else { return head }
      let slot = first &+ index
      return unsafe PackedDescriptor(readingOnce: base + (slot < size ? slot : slot &- size) &* 16)
    }
    guard unsafe spans[Int(id)] == 0 else { throw .bufferAlreadyInFlight(id) }
    let covered = UInt64(span) &* 16
    guard hasRoom(covered, for: id) else { throw .slotNotFree(UInt16(truncatingIfNeeded: first)) }
    return take(id, span: covered)
  }

  public mutating func retake(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    guard let chain = book.nextInterrupted() else { return nil }
    let descriptors = chain.descriptors
    _ = unsafe try walk(
      chain.id, count: descriptors.count, into: segments, capacity: capacity, shape: &shape
    ) { descriptors[$0] }
    if takeMark == PackedFlags.noMark { suppressKicks() }
    book.resume()
    KillPoint.pass(.recoveryResumed)
    return Chain(head: chain.id)
  }

  /// Walks any chain, and throws what is wrong with it. Bounded by the length of the list that it walks, whatever the flags
  /// say.
  ///
  /// - Parameters:
  ///   - name: the chain's head, for error messages.
  ///   - count: the most descriptors that a list can have, at least 1.
  ///   - descriptor: called once for each of them, in order.
  @inline(never)
  private mutating func walk(
    _ name: UInt16, count: Int, into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape,
    descriptor at: (Int) -> PackedDescriptor
  ) throws(QueueError) -> (id: UInt16, span: Int) {
    var collector = unsafe ChainCollector(into: segments, capacity: capacity)
    var span = 0
    while true {
      guard span < count else { throw .chainLoops(head: name) }
      let descriptor = at(span)
      span &+= 1
      if descriptor.isIndirect {
        guard hasIndirect else { throw .indirectNotNegotiated(head: name) }
        guard span == 1 else { throw .indirectInList(head: name) }
        guard !descriptor.hasNext else { throw .indirectWithNext(head: name) }
        try walkTable(descriptor, name, &collector)
      } else {
        try collector.add(
          descriptor.address, length: descriptor.length, isWritable: descriptor.hasWrite, head: name, &view)
        guard !descriptor.hasNext else { continue }
      }
      try collector.finish(head: name, &shape, &view)
      return (descriptor.id, span)
    }
  }

  private mutating func walkTable(
    _ descriptor: PackedDescriptor, _ name: UInt16, _ collector: inout ChainCollector
  ) throws(QueueError) {
    let length = descriptor.length
    let limit = max(Int(size), Self.maximumIndirectEntries)
    guard length > 0, length % 16 == 0, Int(length / 16) <= limit else { throw .badIndirectLength(head: name, length) }
    let table = GuestAddress(descriptor.address)
    guard table.advanced(by: UInt64(length) - 1) != nil else { throw .indirectUnmapped(head: name, table) }
    for index in 0..<UInt64(length / 16) {
      let address = descriptor.address &+ index &* 16
      guard let piece = view.find(address, for: .read) else { throw view.reason(.indirectUnmapped(head: name, table)) }
      let entry: PackedDescriptor
      if piece.count >= 16, unsafe UInt(bitPattern: piece.base) % 8 == 0 {
        unsafe entry = PackedDescriptor(readingOnce: piece.base)
      } else {
        guard let words = view.gatherDescriptor(address) else { throw view.reason(.indirectUnmapped(head: name, table)) }
        entry = PackedDescriptor(words.0, words.1)
      }
      try collector.add(entry.address, length: entry.length, isWritable: entry.hasWrite, head: name, &view)
    }
  }
}
