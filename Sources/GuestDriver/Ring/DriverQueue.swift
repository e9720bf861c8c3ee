/// The driver's side of a split ring. What the device can write to it reads once and believes nothing of; what it needs to
/// know it keeps in private memory. Nothing here allocates after `init`.
internal import Glibc
internal import VirtioCore

/// A ring with its bookkeeping. A noncopyable value: it belongs to one thread.
@safe
public struct DriverQueue: ~Copyable {
  public let setup: QueueSetup
  public let ring: RawRing
  public internal(set) var notifications: NotificationLedger
  /// Chains that the device holds or could hold: added and not yet reaped.
  public private(set) var outstanding = 0
  public private(set) var freeDescriptors: Int
  public private(set) var freeTables: Int

  // Private memory: what is known of each descriptor, each head and each indirect table.
  let shadow: UnsafeMutablePointer<RawDescriptor>
  let chains: UnsafeMutablePointer<Chain>
  /// Free tables, from the front on.
  let tables: UnsafeMutablePointer<UInt16>
  let tableBuffers: UnsafeMutablePointer<GuestBuffer>
  let tableShadow: UnsafeMutablePointer<RawDescriptor>

  private var firstFree: UInt16 = 0
  private var availableIndex: UInt16 = 0
  private var publishedIndex: UInt16 = 0
  /// The used index up to which everything was reaped.
  public private(set) var reapedIndex: UInt16 = 0

  /// What is known of the chain that a head stands for.
  struct Chain {
    var isOutstanding = false
    var descriptors: UInt16 = 0
    var table: UInt16 = 0
    var tableEntries: UInt16 = 0
    var token: UInt32 = 0
    var writable: UInt64 = 0
  }

  public init(_ setup: QueueSetup) {
    self.setup = setup
    ring = RawRing(setup.ring.layout, in: setup.memory)
    let size = Int(setup.ring.layout.size)
    let tableCount = setup.indirectTables.count
    freeDescriptors = size
    freeTables = tableCount
    notifications = NotificationLedger(setup.lines)
    unsafe shadow = .allocate(capacity: size)
    unsafe chains = .allocate(capacity: size)
    unsafe chains.initialize(repeating: Chain(), count: size)
    unsafe tables = .allocate(capacity: max(tableCount, 1))
    unsafe tableBuffers = .allocate(capacity: max(tableCount, 1))
    unsafe tableShadow = .allocate(capacity: max(tableCount * setup.indirectEntries, 1))
    for index in 0..<size {
      unsafe (shadow + index).initialize(to: RawDescriptor(address: 0, length: 0, next: UInt16((index + 1) % size)))
    }
    for (index, buffer) in setup.indirectTables.enumerated() {
      unsafe (tables + index).initialize(to: UInt16(tableCount - 1 - index))
      unsafe (tableBuffers + index).initialize(to: buffer)
    }
    ring.usedEvent.storeRelaxed(0)
  }

  deinit {
    unsafe shadow.deallocate()
    unsafe chains.deallocate()
    unsafe tables.deallocate()
    unsafe tableBuffers.deallocate()
    unsafe tableShadow.deallocate()
  }

  // MARK: available

  /// Puts a chain into the ring. The device sees it after `publish`.
  ///
  /// - Parameters:
  ///   - pieces: at least one; what is readable first, unless a device's refusal is to be seen.
  ///   - placement: indirect needs a free table with room for the pieces.
  ///   - token: comes back with the chain.
  /// - Returns: the head, or `nil` when there are not enough free descriptors or tables.
  public mutating func add(_ pieces: Span<ChainPiece>, placement: ChainPlacement = .direct, token: UInt32) -> UInt16? {
    var direct = pieces.count
    var writeFlag = false
    if case .indirect(let before, let write) = placement {
      direct = min(max(before, 0), pieces.count - 1)
      writeFlag = write
    }
    let indirect = pieces.count - direct
    let descriptors = direct + (indirect > 0 ? 1 : 0)
    guard descriptors > 0, descriptors <= freeDescriptors else { return nil }
    guard indirect == 0 || (freeTables > 0 && indirect <= setup.indirectEntries) else { return nil }

    let head = firstFree
    var chain = Chain(isOutstanding: true, descriptors: UInt16(descriptors), token: token)
    var index = head
    for place in 0..<direct {
      let piece = pieces[place]
      if piece.deviceWrites { chain.writable += UInt64(piece.length) }
      let isLast = place == descriptors - 1
      write(piece, to: index, flags: isLast ? [] : .next)
      if !isLast { index = unsafe shadow[Int(index)].next }
    }
    if indirect > 0 {
      freeTables -= 1
      chain.table = unsafe tables[freeTables]
      chain.tableEntries = UInt16(indirect)
      let address = fillTable(chain.table, pieces, from: direct, &chain.writable)
      let piece = ChainPiece(address, length: UInt32(16 * indirect), deviceWrites: writeFlag)
      write(piece, to: index, flags: .indirect)
    }
    firstFree = unsafe shadow[Int(index)].next
    freeDescriptors -= descriptors
    unsafe chains[Int(head)] = chain
    outstanding += 1
    ring.availableEntry(availableIndex).storeRelaxed(head)
    availableIndex &+= 1
    return head
  }

  private mutating func write(_ piece: ChainPiece, to index: UInt16, flags: RawDescriptor.Flags) {
    let next = unsafe shadow[Int(index)].next
    let descriptor = RawDescriptor(
      address: piece.address.rawValue, length: piece.length, flags: piece.deviceWrites ? flags.union(.write) : flags,
      next: next)
    unsafe shadow[Int(index)] = descriptor
    ring.setDescriptor(index, descriptor)
  }

  private mutating func fillTable(
    _ table: UInt16, _ pieces: Span<ChainPiece>, from first: Int, _ writable: inout UInt64
  ) -> GuestAddress {
    let buffer = unsafe tableBuffers[Int(table)]
    let start = Int(table) * setup.indirectEntries
    for entry in 0..<pieces.count - first {
      let piece = pieces[first + entry]
      if piece.deviceWrites { writable += UInt64(piece.length) }
      let isLast = entry == pieces.count - first - 1
      let flags: RawDescriptor.Flags = isLast ? [] : .next
      let descriptor = RawDescriptor(
        address: piece.address.rawValue, length: piece.length, flags: piece.deviceWrites ? flags.union(.write) : flags,
        next: isLast ? 0 : UInt16(entry + 1))
      unsafe (tableShadow + start + entry).initialize(to: descriptor)
      unsafe RawRing.store(descriptor, at: buffer.host + 16 * entry)
    }
    return buffer.address
  }

  /// Makes everything added since the last time available with one store, and kicks if the device wants it
  /// (virtio 2.6.13).
  ///
  /// - Returns: whether the device was kicked.
  @discardableResult
  public mutating func publish() -> Bool {
    guard publishedIndex != availableIndex else { return false }
    let old = publishedIndex
    publishedIndex = availableIndex
    // Release: descriptors, tables, buffers and ring entries before the index that shows them (2.6.13.3.1).
    ring.availableIndex.storeRelease(availableIndex)
    // The index before the look at whether the device sleeps (2.6.13.4.1).
    fullFence()
    let wanted: Bool
    if setup.eventIndex {
      let event = ring.availableEvent.loadRelaxed()
      wanted = availableIndex &- event &- 1 < availableIndex &- old
      notifications.kickDecision(.event(event, old: old, new: availableIndex), kicked: wanted)
    } else {
      let flags = ring.usedFlags.loadRelaxed()
      wanted = flags & 1 == 0
      notifications.kickDecision(.flags(flags), kicked: wanted)
    }
    if wanted { setup.lines.kick() }
    return wanted
  }

  // MARK: used

  /// Whether something was used that was not reaped yet.
  public var hasUsed: Bool { ring.usedIndex.loadAcquire() != reapedIndex }

  /// Takes the next used chain and checks everything about it that a ring can know.
  public mutating func reap() throws(DriverFault) -> UsedChain? {
    // Acquire: the element and what the device wrote are read after the index that shows them.
    let usedIndex = ring.usedIndex.loadAcquire()
    guard usedIndex != reapedIndex else { return nil }
    let inDevice = outstanding - Int(availableIndex &- publishedIndex)
    guard Int(usedIndex &- reapedIndex) <= inDevice else {
      throw .usedIndexJumped(queue: setup.index, from: reapedIndex, to: usedIndex, outstanding: inDevice)
    }
    let id = ring.usedID(reapedIndex).loadRelaxed()
    let length = ring.usedLength(reapedIndex).loadRelaxed()
    guard id < UInt32(ring.layout.size), unsafe chains[Int(id)].isOutstanding else {
      throw .usedIDNotOutstanding(queue: setup.index, id: id, slot: reapedIndex & (ring.layout.size &- 1))
    }
    let head = UInt16(id)
    let chain = unsafe chains[Int(head)]
    guard UInt64(length) <= chain.writable else {
      throw .usedLengthTooLong(queue: setup.index, head: head, length: length, writable: chain.writable)
    }
    try checkDescriptors(of: head, chain)
    try checkRingWords()
    release(head, chain)
    reapedIndex &+= 1
    notifications.countReaped()
    return UsedChain(head: head, token: chain.token, length: length, writable: chain.writable)
  }

  private func checkDescriptors(of head: UInt16, _ chain: Chain) throws(DriverFault) {
    var index = head
    for _ in 0..<chain.descriptors {
      let wrote = unsafe shadow[Int(index)]
      let found = ring.descriptor(index)
      guard found == wrote else {
        throw .descriptorModified(queue: setup.index, index: index, wrote: wrote, found: found)
      }
      index = wrote.next
    }
    guard chain.tableEntries > 0 else { return }
    let buffer = unsafe tableBuffers[Int(chain.table)]
    let start = Int(chain.table) * setup.indirectEntries
    for entry in 0..<Int(chain.tableEntries) {
      let wrote = unsafe tableShadow[start + entry]
      let found = unsafe RawRing.load(buffer.host + 16 * entry)
      guard found == wrote else {
        throw .indirectDescriptorModified(queue: setup.index, head: head, entry: entry, wrote: wrote, found: found)
      }
    }
  }

  private func checkRingWords() throws(DriverFault) {
    let index = ring.availableIndex.loadRelaxed()
    guard index == publishedIndex else {
      throw .availableIndexModified(queue: setup.index, wrote: publishedIndex, found: index)
    }
    let flags = ring.usedFlags.loadRelaxed()
    guard flags <= (setup.eventIndex ? 0 : 1) else {
      throw .badUsedFlags(queue: setup.index, flags, eventIndex: setup.eventIndex)
    }
  }

  private mutating func release(_ head: UInt16, _ chain: Chain) {
    unsafe chains[Int(head)].isOutstanding = false
    outstanding -= 1
    var last = head
    for _ in 1..<chain.descriptors { last = unsafe shadow[Int(last)].next }
    unsafe shadow[Int(last)].next = firstFree
    firstFree = head
    freeDescriptors += Int(chain.descriptors)
    if chain.tableEntries > 0 {
      unsafe tables[freeTables] = chain.table
      freeTables += 1
    }
  }
}
