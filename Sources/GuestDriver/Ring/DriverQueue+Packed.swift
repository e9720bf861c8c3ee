/// What is specific to a packed ring (virtio 2.7). Descriptors are consumed in ring order; the device answers in any order,
/// into the same ring, over descriptors that it has finished with.
internal import VirtioCore

extension DriverQueue {
  /// Writes a chain's descriptors from the next available position on. The device reaches the first chain of a batch before any
  /// other, so only that one's head is held back until `show`.
  ///
  /// - Returns: the buffer's ID.
  mutating func place(_ pieces: Span<ChainPiece>, direct: Int, _ table: ChainPiece?, in ring: RawPackedRing) -> UInt16 {
    let id = firstFree
    firstFree = unsafe chains[Int(id)].nextFree
    let count = direct + (table == nil ? 0 : 1)
    var position = RingPosition(word: availableIndex)
    for place in 0..<count {
      let piece = place < direct ? pieces[place] : table
      guard let piece else { break }
      let isLast = place == count - 1
      var flags = RawDescriptor.Flags(rawValue: position.availableMarks)
      if !isLast { flags.insert(.next) }
      if place == direct { flags.insert(.indirect) }
      if piece.deviceWrites { flags.insert(.write) }
      // The ID is valid only in the last descriptor (virtio 2.7.13): a device that takes it from another one is caught.
      var descriptor = RawDescriptor(
        address: piece.address.rawValue, length: piece.length, flags: flags, next: isLast ? id : ~id)
      unsafe shadow[Int(position.slot)] = descriptor
      if place == 0, availableIndex == publishedIndex {
        descriptor.flags.subtract(RawDescriptor.Flags(rawValue: RingPosition.marks))
        descriptor.flags.formUnion(RawDescriptor.Flags(rawValue: position.restingMarks))
      }
      ring.setDescriptor(position.slot, descriptor)
      position = position.advanced(by: 1, size: size)
    }
    availableIndex = position.word
    return id
  }

  /// - Returns: whether the device wants a kick.
  mutating func show(in ring: RawPackedRing) -> Bool {
    let (old, new) = (RingPosition(word: publishedIndex), RingPosition(word: availableIndex))
    publishedIndex = availableIndex
    // Release: the other descriptors of the batch, tables and buffers before the flags that show them (2.7.21.1.1).
    ring.flags(old.slot).storeRelease(unsafe shadow[Int(old.slot)].flags.rawValue)
    // The flags before the check whether the device sleeps (2.7.21.3.1).
    fullFence()
    let event = ring.deviceEvent
    let wanted =
      switch event.flags {
      case EventSuppression.disable: false
      case EventSuppression.descriptor where setup.eventIndex:
        RingPosition.needsEvent(RingPosition(word: event.position), from: old, to: new, size: size)
      // Anything else means enabled, or is a fault that the next answer reveals.
      default: true
      }
    notifications.kickDecision(.packed(event, old: old, new: new), kicked: wanted)
    return wanted
  }

  mutating func reap(from ring: RawPackedRing) throws(DriverFault) -> UsedChain? {
    let position = RingPosition(word: reapedIndex)
    // Nothing is written for the other chains of a batch: all their descriptors are unchanged.
    if batchLeft > 0 {
      let (id, length) = nextOfBatch()
      return try take(id, length, at: position, isShown: false, in: ring)
    }
    // Acquire: ID, length and what the device wrote are read after the flags that show them.
    let flags = ring.flags(position.slot).loadAcquire()
    let marks = flags & RingPosition.marks
    guard marks == position.usedMarks else {
      // Whichever chain the device answers next, this descriptor is one that it holds.
      guard inDevice == 0 || marks == position.availableMarks else {
        throw .badDescriptorMarks(queue: setup.index, slot: position.slot, flags: flags, wrap: position.wrap)
      }
      return nil
    }
    let element = ring.descriptor(position.slot)
    let id = element.next
    guard id < size, unsafe chains[Int(id)].isOutstanding, unsafe chains[Int(id)].number < published else {
      throw .usedIDNotOutstanding(queue: setup.index, id: UInt32(id), slot: position.slot)
    }
    // Without WRITE the length means nothing (virtio 2.7.5).
    let length = RawDescriptor.Flags(rawValue: flags).contains(.write) ? element.length : 0
    guard setup.inOrder else { return try take(id, length, at: position, isShown: true, in: ring) }
    (batchLeft, batchLength) = (batch(endingWith: id), length)
    let first = nextOfBatch()
    return try take(first.head, first.length, at: position, isShown: true, in: ring)
  }

  /// - Parameter isShown: the chain's first descriptor was overwritten by the answer.
  private mutating func take(
    _ id: UInt16, _ length: UInt32, at position: RingPosition, isShown: Bool, in ring: RawPackedRing
  ) throws(DriverFault) -> UsedChain {
    let chain = unsafe chains[Int(id)]
    guard UInt64(length) <= chain.writable else {
      throw .usedLengthTooLong(queue: setup.index, head: id, length: length, writable: chain.writable)
    }
    try checkSkipped(from: position, count: chain.descriptors, isShown: isShown, in: ring)
    try tables.check(chain, head: id, queue: setup.index)
    try checkEvents(ring)
    unsafe chains[Int(id)].nextFree = firstFree
    firstFree = id
    reapedIndex = position.advanced(by: chain.descriptors, size: size).word
    reapedCount &+= chain.descriptors
    return take(id, chain, length: length)
  }

  /// The device writes one descriptor for a chain and skips as many as the chain had. The skipped ones still hold what the
  /// driver wrote for some chain, because no other used descriptor can have been there before.
  private func checkSkipped(
    from position: RingPosition, count: UInt16, isShown: Bool, in ring: RawPackedRing
  ) throws(DriverFault) {
    for place in (isShown ? 1 : 0)..<max(count, 1) {
      let position = position.advanced(by: place, size: size)
      let wrote = unsafe shadow[Int(position.slot)]
      let found = ring.descriptor(position.slot)
      guard found == wrote else {
        throw .descriptorModified(queue: setup.index, index: position.slot, wrote: wrote, found: found)
      }
    }
  }

  private func checkEvents(_ ring: RawPackedRing) throws(DriverFault) {
    let mine = ring.driverEvent
    guard mine == driverEvent else { throw .driverEventModified(queue: setup.index, wrote: driverEvent, found: mine) }
    let event = ring.deviceEvent
    guard event.isLegal(size: size, eventIndex: setup.eventIndex) else {
      throw .badDeviceEvent(queue: setup.index, event, eventIndex: setup.eventIndex)
    }
  }

  /// How many descriptors the answers cover that were not reaped yet.
  func usedSpan(in ring: RawPackedRing) -> UInt16 {
    var position = RingPosition(word: reapedIndex)
    var span: UInt16 = 0
    var number = added - UInt64(outstanding)
    func skip(_ count: Int) {
      for _ in 0..<count {
        span &+= unsafe chains[Int(sequence[Int(number % UInt64(size))])].descriptors
        number += 1
      }
    }
    skip(batchLeft)
    position = position.advanced(by: min(span, size), size: size)
    // No more answers than chains, whatever the ring says.
    for _ in batchLeft..<max(inDevice, batchLeft) {
      guard ring.isUsed(position) else { break }
      let id = ring.descriptor(position.slot).next
      guard id < size, unsafe chains[Int(id)].isOutstanding else { break }
      let before = span
      if setup.inOrder {
        let end = unsafe chains[Int(id)].number
        guard end >= number, end < published else { break }
        skip(Int(end - number) + 1)
      } else {
        span &+= unsafe chains[Int(id)].descriptors
      }
      position = position.advanced(by: min(span &- before, size), size: size)
    }
    return span
  }

  mutating func requestNoCalls(_ ring: RawPackedRing) {
    driverEvent.flags = EventSuppression.disable
    ring.driverEventFlags.storeRelaxed(driverEvent.flags)
  }

  /// - Parameter after: descriptors, less than the ring has.
  mutating func requestCall(after: UInt16, _ ring: RawPackedRing) {
    guard setup.eventIndex else {
      driverEvent.flags = EventSuppression.enable
      ring.driverEventFlags.storeRelaxed(driverEvent.flags)
      return
    }
    driverEvent.position = RingPosition(word: reapedIndex).advanced(by: min(after, size - 1), size: size).word
    driverEvent.flags = EventSuppression.descriptor
    ring.driverEventPosition.storeRelaxed(driverEvent.position)
    // Release: the position before the flags that make it valid.
    ring.driverEventFlags.storeRelease(driverEvent.flags)
  }
}
