/// What is specific to a split ring (virtio 2.6).
internal import VirtioCore

extension DriverQueue {
  /// Writes a chain's descriptors, and its head into the next available entry. - Returns: the head.
  mutating func place(_ pieces: Span<ChainPiece>, direct: Int, _ table: ChainPiece?, in ring: RawRing) -> UInt16 {
    let head = firstFree
    var index = head
    for place in 0..<direct {
      let isLast = place == direct - 1 && table == nil
      write(pieces[place], to: index, flags: isLast ? [] : .next, in: ring)
      if !isLast { index = unsafe shadow[Int(index)].next }
    }
    if let table { write(table, to: index, flags: .indirect, in: ring) }
    firstFree = unsafe shadow[Int(index)].next
    ring.availableEntry(availableIndex).storeRelaxed(head)
    availableIndex &+= 1
    return head
  }

  private mutating func write(_ piece: ChainPiece, to index: UInt16, flags: RawDescriptor.Flags, in ring: RawRing) {
    let next = unsafe shadow[Int(index)].next
    let descriptor = RawDescriptor(
      address: piece.address.rawValue, length: piece.length, flags: piece.deviceWrites ? flags.union(.write) : flags,
      next: next)
    unsafe shadow[Int(index)] = descriptor
    ring.setDescriptor(index, descriptor)
  }

  /// - Returns: whether the device wants a kick.
  mutating func show(in ring: RawRing) -> Bool {
    let old = publishedIndex
    publishedIndex = availableIndex
    // Release: descriptors, tables, buffers and ring entries before the index that shows them (2.6.13.3.1).
    ring.availableIndex.storeRelease(availableIndex)
    // The index before the check whether the device sleeps (2.6.13.4.1).
    fullFence()
    if setup.eventIndex {
      let event = ring.availableEvent.loadRelaxed()
      let wanted = availableIndex &- event &- 1 < availableIndex &- old
      notifications.kickDecision(.event(event, old: old, new: availableIndex), kicked: wanted)
      return wanted
    }
    let flags = ring.usedFlags.loadRelaxed()
    let wanted = flags & 1 == 0
    notifications.kickDecision(.flags(flags), kicked: wanted)
    return wanted
  }

  mutating func reap(from ring: RawRing) throws(DriverFault) -> UsedChain? {
    // Acquire: the element and what the device wrote are read after the index that shows them.
    let usedIndex = ring.usedIndex.loadAcquire()
    guard usedIndex != reapedIndex else { return nil }
    guard Int(usedIndex &- reapedIndex) <= inDevice else {
      throw .usedIndexJumped(queue: setup.index, from: reapedIndex, to: usedIndex, outstanding: inDevice)
    }
    let (head, length) = try nextAnswer(in: ring, usedIndex)
    let chain = unsafe chains[Int(head)]
    guard UInt64(length) <= chain.writable else {
      throw .usedLengthTooLong(queue: setup.index, head: head, length: length, writable: chain.writable)
    }
    let last = try checkDescriptors(of: head, chain, in: ring)
    try tables.check(chain, head: head, queue: setup.index)
    try checkRingWords(ring)
    // With IN_ORDER descriptors are used in the order of the table (2.6.9): the links stay as they are.
    if !setup.inOrder {
      unsafe shadow[Int(last)].next = firstFree
      firstFree = head
    }
    reapedIndex &+= 1
    reapedCount &+= 1
    return take(head, chain, length: length)
  }

  /// The chain that is used next, and the length of its answer.
  private mutating func nextAnswer(in ring: RawRing, _ usedIndex: UInt16) throws(DriverFault) -> (head: UInt16, length: UInt32)
  {
    if batchLeft == 0 {
      let id = ring.usedID(reapedIndex).loadRelaxed()
      let length = ring.usedLength(reapedIndex).loadRelaxed()
      guard id < UInt32(size), unsafe chains[Int(id)].isOutstanding else {
        throw .usedIDNotOutstanding(queue: setup.index, id: id, slot: reapedIndex & (size &- 1))
      }
      guard setup.inOrder else { return (UInt16(id), length) }
      let count = batch(endingWith: UInt16(id))
      let moved = usedIndex &- reapedIndex
      guard count <= Int(moved) else {
        throw .batchTooLong(queue: setup.index, id: UInt16(id), count: count, moved: Int(moved))
      }
      (batchLeft, batchLength) = (count, length)
    }
    return nextOfBatch()
  }

  /// - Returns: the last descriptor of the chain.
  private func checkDescriptors(of head: UInt16, _ chain: Chain, in ring: RawRing) throws(DriverFault) -> UInt16 {
    var index = head
    var last = head
    for _ in 0..<chain.descriptors {
      let wrote = unsafe shadow[Int(index)]
      let found = ring.descriptor(index)
      guard found == wrote else {
        throw .descriptorModified(queue: setup.index, index: index, wrote: wrote, found: found)
      }
      last = index
      index = wrote.next
    }
    return last
  }

  private func checkRingWords(_ ring: RawRing) throws(DriverFault) {
    let index = ring.availableIndex.loadRelaxed()
    guard index == publishedIndex else {
      throw .availableIndexModified(queue: setup.index, wrote: publishedIndex, found: index)
    }
    let flags = ring.usedFlags.loadRelaxed()
    guard flags <= (setup.eventIndex ? 0 : 1) else {
      throw .badUsedFlags(queue: setup.index, flags, eventIndex: setup.eventIndex)
    }
  }

  func requestNoCalls(_ ring: RawRing) {
    if setup.eventIndex {
      // An index that is as far ahead as possible: 65,535 entries.
      ring.usedEvent.storeRelaxed(reapedIndex &- 1)
    } else {
      ring.availableFlags.storeRelaxed(1)
    }
  }

  func requestCall(after: UInt16, _ ring: RawRing) {
    if setup.eventIndex {
      ring.usedEvent.storeRelaxed(reapedIndex &+ after)
    } else {
      ring.availableFlags.storeRelaxed(0)
    }
  }
}
