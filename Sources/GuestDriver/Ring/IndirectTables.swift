/// The indirect tables of one queue: memory that is allocated once, and what was written to it.
internal import VirtioCore

/// A plain value around memory that a `DriverQueue` owns and frees with `deallocate`.
@safe
struct IndirectTables {
  /// Tables that no chain refers to.
  private(set) var free: Int

  private let format: RingFormat
  private let entries: Int
  /// Free tables, from the front on.
  private let freeTables: UnsafeMutablePointer<UInt16>
  private let buffers: UnsafeMutablePointer<GuestBuffer>
  private let shadow: UnsafeMutablePointer<RawDescriptor>

  init(_ setup: QueueSetup) {
    let count = setup.indirectTables.count
    free = count
    format = setup.ring.layout.format
    entries = setup.indirectEntries
    unsafe freeTables = .allocate(capacity: max(count, 1))
    unsafe buffers = .allocate(capacity: max(count, 1))
    unsafe shadow = .allocate(capacity: max(count * entries, 1))
    for (index, buffer) in setup.indirectTables.enumerated() {
      unsafe (freeTables + index).initialize(to: UInt16(count - 1 - index))
      unsafe (buffers + index).initialize(to: buffer)
    }
  }

  func deallocate() {
    unsafe freeTables.deallocate()
    unsafe buffers.deallocate()
    unsafe shadow.deallocate()
  }

  /// Whether a table is free that has room for that many pieces.
  func hasRoom(for pieces: Int) -> Bool { free > 0 && pieces <= entries }

  /// Takes a table and fills it with the pieces from `first` on. - Precondition: `hasRoom`.
  ///
  /// - Parameter writable: increased by the number of bytes that the device may write.
  mutating func take(
    _ pieces: Span<ChainPiece>, from first: Int, writable: inout UInt64
  ) -> (table: UInt16, address: GuestAddress) {
    free -= 1
    let table = unsafe freeTables[free]
    let buffer = unsafe buffers[Int(table)]
    let start = Int(table) * entries
    for entry in 0..<pieces.count - first {
      let piece = pieces[first + entry]
      if piece.deviceWrites { writable += UInt64(piece.length) }
      // Those of a packed ring follow one another, and only WRITE may be set in them (virtio 2.7.19).
      let hasNext = format == .split && entry < pieces.count - first - 1
      var descriptor = RawDescriptor(
        address: piece.address.rawValue, length: piece.length, next: hasNext ? UInt16(entry + 1) : 0)
      if hasNext { descriptor.flags.insert(.next) }
      if piece.deviceWrites { descriptor.flags.insert(.write) }
      unsafe (shadow + start + entry).initialize(to: descriptor)
      unsafe descriptor.store(at: buffer.host + 16 * entry, format)
    }
    return (table, buffer.address)
  }

  /// Checks that the device did not change a chain's table.
  func check(_ chain: DriverQueue.Chain, head: UInt16, queue: Int) throws(DriverFault) {
    guard chain.tableEntries > 0 else { return }
    let buffer = unsafe buffers[Int(chain.table)]
    let start = Int(chain.table) * entries
    for entry in 0..<Int(chain.tableEntries) {
      let wrote = unsafe shadow[start + entry]
      let found = unsafe RawDescriptor(loadedFrom: buffer.host + 16 * entry, format)
      guard found == wrote else {
        throw .indirectDescriptorModified(queue: queue, head: head, entry: entry, wrote: wrote, found: found)
      }
    }
  }

  mutating func give(_ table: UInt16) {
    unsafe freeTables[free] = table
    free += 1
  }
}
