/// One queue, driven by a check: chains go into the ring descriptor by descriptor, and nothing is forbidden.
internal import GuestDriver
internal import MemoryFile
internal import VirtioCore

/// What a device put into the ring.
struct UsedElement: Hashable {
  var id: UInt16
  var length: UInt32
  /// Packed: the flags of the used descriptor; split: 0.
  var flags: UInt16
  /// Packed: where it was.
  var slot: UInt16
}

/// A ring of either format. Chains are known by their heads (split) or buffer IDs (packed).
final class Hand {
  enum Raw {
    case split(RawRing)
    case packed(RawPackedRing)
  }

  let index: Int
  let ring: RingMemory
  let lines: QueueLines
  let raw: Raw
  let inOrder: Bool
  var size: UInt16 { ring.layout.size }
  var format: RingFormat { ring.layout.format }

  /// Chains that the device has: for split the slots of each, for packed how many.
  private(set) var outstanding: [UInt16: [UInt16]] = [:]
  private var order: [UInt16] = []
  private var free: [UInt16]
  private var usedSeen: UInt16 = 0
  /// Packed: where the next chain goes, and where the next used descriptor is expected.
  private(set) var next = RingPosition.start
  private(set) var nextUsed = RingPosition.start
  /// Packed: the ID of the next chain.
  var nextID: UInt16 = 0
  private var unpublished: UInt16 = 0
  private var heldHead: (slot: UInt16, flags: UInt16)?
  /// Used elements that have not been consumed, by ID, and how many there were in all.
  private(set) var finished: [UInt16: UsedElement] = [:]
  private(set) var usedCount = 0
  private(set) var lastUsed: UsedElement?
  private var callsSeen: UInt32 = 0

  init(index: Int, ring: RingMemory, lines: QueueLines, memory: DriverMemory, inOrder: Bool) {
    self.index = index
    self.ring = ring
    self.lines = lines
    self.inOrder = inOrder
    raw =
      ring.layout.format == .split ? .split(RawRing(ring.layout, in: memory)) : .packed(RawPackedRing(ring.layout, in: memory))
    free = (0..<ring.layout.size).reversed()
    if case .memoryFile(let file, let queue) = lines { callsSeen = file.callCount(queue: queue) }
  }

  var split: RawRing {
    guard case .split(let ring) = raw else { preconditionFailure("this check is for split rings") }
    return ring
  }

  var packed: RawPackedRing {
    guard case .packed(let ring) = raw else { preconditionFailure("this check is for packed rings") }
    return ring
  }

  /// A chain found no room and was left out, because the device's limits make chains long.
  private(set) var isOverfull = false

  /// Descriptors that a chain can still have.
  var room: Int {
    format == .split ? free.count : Int(size) - outstanding.values.reduce(0) { $0 + $1.count }
  }

  // MARK: Out

  /// Writes a chain and makes it available, linked in order.
  ///
  /// - Parameters:
  ///   - id: packed: the buffer ID.
  ///   - isHeld: it becomes available with the next `publish`.
  @discardableResult func offer(_ chain: [RawDescriptor], id: UInt16? = nil, isHeld: Bool = false) -> UInt16 {
    // A list that is longer than a packed ring, or has the ID of another, is meant to be refused.
    guard chain.count <= room || format == .packed && (id != nil || chain.count > Int(size)) else {
      isOverfull = true
      return .max
    }
    switch raw {
    case .split(let ring):
      let slots = (0..<chain.count).map { _ in free.removeLast() }
      for (place, slot) in slots.enumerated() {
        var copy = chain[place]
        if place + 1 < slots.count {
          copy.flags.insert(.next)
          copy.next = slots[place + 1]
        }
        ring.setDescriptor(slot, copy)
      }
      outstanding[slots[0]] = slots
      // The answer to an earlier chain with this ID is not the answer to this one.
      finished[slots[0]] = nil
      order.append(slots[0])
      let index = ring.availableIndex.loadRelaxed()
      ring.availableEntry(index &+ unpublished).storeRelaxed(slots[0])
      unpublished += 1
      if !isHeld { publish() }
      return slots[0]
    case .packed(let ring):
      let name = id ?? nextID
      if id == nil { nextID = (nextID + 1) % size }
      for (place, descriptor) in chain.enumerated() {
        var copy = descriptor
        copy.next = name
        if place + 1 < chain.count { copy.flags.insert(.next) }
        let marks: UInt16 = next.wrap ? 0x0080 : 0x8000
        let flags = copy.flags.rawValue | marks
        // The first head is marked last; until then it has what the previous lap left there.
        let isHeld = place == 0 && heldHead == nil
        if isHeld { heldHead = (next.slot, flags) }
        copy.flags = RawDescriptor.Flags(rawValue: isHeld ? copy.flags.rawValue | (next.wrap ? 0 : 0x8080) : flags)
        ring.setDescriptor(next.slot, copy)
        next = next.advanced(by: 1, size: size)
      }
      outstanding[name] = (0..<UInt16(chain.count)).map { $0 }
      finished[name] = nil
      order.append(name)
      if !isHeld { publish() }
      return name
    }
  }

  /// Makes available what was held.
  func publish() {
    switch raw {
    case .split(let ring):
      // Release: a device that sees the index sees entries and descriptors.
      ring.availableIndex.storeRelease(ring.availableIndex.loadRelaxed() &+ unpublished)
      unpublished = 0
    case .packed(let ring):
      // Release: a device that sees the marks of the first head sees everything after it.
      if let heldHead { ring.flags(heldHead.slot).storeRelease(heldHead.flags) }
      heldHead = nil
    }
  }

  /// Split, before the ring is started: both indices begin here.
  func rebase(_ index: UInt16) {
    split.availableIndex.storeRelaxed(index)
    split.usedIndex.storeRelaxed(index)
    usedSeen = index
  }

  /// Split: makes any number available as a head, without tracking it.
  func offerHead(_ head: UInt16) { split.offer(head) }

  /// Whether the device wants to be kicked for what became available since `old`.
  func wantsKick(from old: UInt16, eventIndex: Bool) -> Bool {
    switch raw {
    case .split(let ring):
      let new = ring.availableIndex.loadRelaxed()
      guard eventIndex else { return ring.usedFlags.loadAcquire() & 1 == 0 }
      return new &- ring.availableEvent.loadRelaxed() &- 1 < new &- old
    case .packed(let ring):
      let event = ring.deviceEvent
      switch event.flags {
      case EventSuppression.disable: return false
      case EventSuppression.descriptor where eventIndex:
        let word = RingPosition(word: event.position)
        var place = RingPosition(word: old)
        while place != next {
          if place == word { return true }
          place = place.advanced(by: 1, size: size)
        }
        return false
      default: return true
      }
    }
  }

  /// The driver's position, for `wantsKick`.
  var mark: UInt16 { format == .split ? split.availableIndex.loadRelaxed() : next.word }

  // MARK: Back

  /// Takes what the device has used since the last call.
  ///
  /// - Throws: `Trouble.broken` if something was used that was never made available.
  func look() throws {
    guard !isOverfull else { throw Trouble.noRoom }
    switch raw {
    case .split(let ring):
      let end = ring.usedIndex.loadAcquire()
      guard end &- usedSeen <= UInt16(clamping: outstanding.count) else {
        throw Trouble.broken(
          "the used index of queue \(index) went from \(usedSeen) to \(end) with \(outstanding.count) chains given")
      }
      while usedSeen != end {
        let id = ring.usedID(usedSeen).loadRelaxed()
        let length = ring.usedLength(usedSeen).loadRelaxed()
        guard id < UInt32(size) else { throw Trouble.broken("a used element has id \(id) in a ring of \(size)") }
        let element = UsedElement(id: UInt16(id), length: length, flags: 0, slot: usedSeen & (size &- 1))
        let before = usedCount
        try finish(element)
        let chains = UInt16(usedCount - before)
        guard chains <= end &- usedSeen else {
          throw Trouble.broken("one element stands for \(chains) chains, and the used index went on by \(end &- usedSeen)")
        }
        usedSeen &+= chains
      }
    case .packed(let ring):
      while !outstanding.isEmpty, ring.isUsed(nextUsed) {
        let found = ring.descriptor(nextUsed.slot)
        let element = UsedElement(id: found.next, length: found.length, flags: found.flags.rawValue, slot: nextUsed.slot)
        let slots = try finish(element)
        nextUsed = nextUsed.advanced(by: slots, size: size)
      }
    }
  }

  /// - Returns: by how many slots of a packed ring to advance.
  @discardableResult private func finish(_ element: UsedElement) throws -> UInt16 {
    guard outstanding[element.id] != nil else {
      throw Trouble.broken("queue \(index): id \(element.id) came back, which the device does not have")
    }
    var slots: UInt16 = 0
    // With IN_ORDER one element stands for all chains up to its own (virtio 2.6.9, 2.7.8).
    let batch = inOrder ? Array(order.prefix { $0 != element.id }) + [element.id] : [element.id]
    for id in batch {
      guard let chain = outstanding.removeValue(forKey: id) else { continue }
      slots += UInt16(chain.count)
      if format == .split { free.append(contentsOf: chain.reversed()) }
      finished[id] = id == element.id ? element : UsedElement(id: id, length: 0, flags: 0, slot: element.slot)
      usedCount += 1
    }
    order.removeAll { batch.contains($0) }
    lastUsed = element
    return slots
  }

  func take(_ id: UInt16) -> UsedElement? { finished.removeValue(forKey: id) }

  // MARK: Lines

  func kick() { lines.kick() }

  /// How many calls arrived since the last call of this method.
  func takeCalls() -> Int {
    switch lines {
    case .eventCounters(_, let call): return Int(clamping: EventCounter.drain(call.rawValue))
    case .memoryFile(let file, let queue):
      let now = file.callCount(queue: queue)
      defer { callsSeen = now }
      if now != callsSeen { file.acknowledgeInterrupt(1) }
      return Int(now &- callsSeen)
    }
  }

  /// Where the device's next element goes, without waiting for it.
  var usedMark: UInt16 { format == .split ? split.usedIndex.loadAcquire() : nextUsed.word }
}
