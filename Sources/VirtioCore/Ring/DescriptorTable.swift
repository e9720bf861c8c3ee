/// The descriptor table of a split queue (virtio 2.6.5), and how a head is resolved to its buffers.

/// It lies in the driver's memory and may change at any time: each descriptor is read once, and nothing is written.
@safe
@usableFromInline
struct DescriptorTable {
  /// An indirect table may be longer than the queue; this is the longest that is accepted, in QEMU as well.
  @usableFromInline static var maximumIndirectEntries: Int { 1024 }

  @usableFromInline let base: UnsafeMutableRawPointer
  @usableFromInline let size: UInt16
  @usableFromInline var view: GuestMemoryView
  @usableFromInline let hasIndirect: Bool

  /// - Parameter base: of 16 bytes for each of `size` descriptors, aligned to 8.
  init(_ base: UnsafeMutableRawPointer, size: UInt16, view: GuestMemoryView, hasIndirect: Bool) {
    unsafe self.base = base
    self.size = size
    self.view = view
    self.hasIndirect = hasIndirect
  }

  /// The fast path, for chains as drivers make them. `shape` is valid only if it succeeds.
  @inlinable @inline(__always)
  mutating func walkPlain(
    _ head: UInt16, into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) -> Bool {
    var table = unsafe base
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
    // Bounds both loops, even if links form a cycle: each step takes a segment, and there is room for at least one.
    let end = unsafe segments + capacity
    var next = unsafe segments
    var bytes: UInt64 = 0

    while descriptor.isReadable {
      guard let base = unsafe view.place(descriptor) else { return false }
      unsafe next.pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      unsafe next += 1
      // There must be another descriptor, for the status; otherwise the slow path decides.
      guard descriptor.hasNext, descriptor.next < entries, unsafe next < end else { return false }
      unsafe descriptor = Descriptor(readingOnce: table + Int(descriptor.next) &* 16)
    }
    unsafe shape.writable = next
    shape.readableBytes = bytes
    while descriptor.isWritable {
      guard let base = unsafe view.place(descriptor) else { return false }
      unsafe next.pointee = MemorySegment(base: base, count: Int(descriptor.length))
      bytes &+= UInt64(descriptor.length)
      unsafe next += 1
      guard descriptor.hasNext else {
        guard bytes <= UInt64(Int32.max) else { return false }
        unsafe shape.end = next
        shape.writableBytes = bytes &- shape.readableBytes
        shape.defect = nil
        return true
      }
      guard descriptor.next < entries, unsafe next < end else { return false }
      unsafe descriptor = Descriptor(readingOnce: table + Int(descriptor.next) &* 16)
    }
    return false  // readable after writable, or an indirect descriptor after others
  }

  /// Follows any chain from its head, and reports what is wrong with it. Bounded by the length of the table that it walks,
  /// whatever the links say.
  @inline(never)
  @usableFromInline mutating func walk(
    _ head: UInt16, into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) {
    var table = unsafe MemorySegment(base: base, count: Int(size) &* 16)
    var tableAddress: UInt64? = nil  // guest address of an indirect table that is not in one piece
    var tableEntries = Int(size)
    var budget = tableEntries
    var isIndirect = false
    var index = Int(head)

    var collector = unsafe ChainCollector(into: segments, capacity: capacity)

    while true {
      guard budget > 0 else { throw .chainLoops(head: head) }
      budget &-= 1
      let descriptor: Descriptor
      if let tableAddress {
        guard let copy = view.gatherDescriptor(tableAddress &+ UInt64(index) &* 16) else {
          throw view.reason(.indirectUnmapped(head: head, GuestAddress(tableAddress)))
        }
        descriptor = Descriptor(copy.0, copy.1)
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
        // The WRITE flag of this descriptor is ignored (virtio 2.6.5.3.2).
        guard GuestAddress(descriptor.address).advanced(by: UInt64(length) - 1) != nil,
          let piece = view.find(descriptor.address, for: .read)
        else { throw view.reason(.indirectUnmapped(head: head, GuestAddress(descriptor.address))) }
        table = piece
        tableAddress =
          unsafe piece.count >= Int(length) && UInt(bitPattern: piece.base) % 8 == 0 ? nil : descriptor.address
        isIndirect = true
        tableEntries = Int(length / 16)
        budget = tableEntries
        index = 0
        continue
      }

      try collector.add(
        descriptor.address, length: descriptor.length, isWritable: descriptor.hasWrite, head: head, &view)
      guard descriptor.hasNext else { break }
      index = Int(descriptor.next)
      guard index < tableEntries else { throw .nextOutOfRange(UInt16(descriptor.next)) }
    }

    try collector.finish(head: head, &shape, &view)
  }
}
