/// The reference implementation of packed rings: one descriptor at a time, and answers in an order on which no driver may rely.
import VirtioCore

extension ReferenceDevice {
  /// A chain that was executed and is not answered yet.
  struct Answer {
    var id: UInt16
    /// Descriptors in the ring.
    var count: UInt16
    var length: UInt32
    var writable: Int
  }

  /// The position after `place`, in the words of the specification: at the end of the ring the wrap counter flips.
  private static func step(_ place: UInt16, _ size: UInt16) -> UInt16 {
    let next = (place & 0x7fff) + 1
    return next == size ? (place & 0x8000) ^ 0x8000 : next | place & 0x8000
  }

  private static func isAvailable(_ flags: UInt16, _ place: UInt16) -> Bool {
    let wrap = place & 0x8000 != 0
    return (flags & 0x80 != 0) == wrap && (flags & 0x8000 != 0) != wrap
  }

  func drainPacked(_ queue: inout Queue, _ state: inout State) throws(QueueError) {
    while true {
      var answers: [Answer] = []
      // Also if a chain is broken: good ones before it are answered.
      defer { answer(answers.reversed(), &queue) }
      while Self.isAvailable(queue.flags(queue.next).loadAcquire(), queue.next) {
        let (pieces, id, count) = try walkPacked(&queue)
        let length = try execute(pieces, id, &queue, &state)
        state.requests += 1
        for _ in 0..<count { queue.next = Self.step(queue.next, queue.size) }
        let writable = pieces.filter(\.writes).reduce(0) { $0 + Int($1.length) }
        answers.append(Answer(id: id, count: count, length: length, writable: writable))
      }
      if answers.isEmpty {
        if flaw == .ignoresKicks {
          queue.used(2).storeRelaxed(1)
        } else if queue.eventIndex {
          queue.used(0).storeRelaxed(queue.next)
          queue.used(2).storeRelease(2)
        } else {
          queue.used(2).storeRelaxed(0)
        }
        if flaw == .garbageUsedFlags { queue.used(2).storeRelaxed(3) }
        fullFence()
        if !Self.isAvailable(queue.flags(queue.next).loadAcquire(), queue.next) { return }
      }
    }
  }

  /// Writes used descriptors from the last one to the first, so that a driver sees all of them or none.
  private func answer(_ answers: [Answer], _ queue: inout Queue) {
    guard !answers.isEmpty, flaw != .neverPublishes else { return }
    let old = queue.published
    var flags: [(place: UInt16, flags: UInt16)] = []
    for (number, answer) in answers.enumerated() {
      var (id, length, place) = (answer.id, answer.length, queue.published)
      switch flaw {
      case .wrongID: id = (id &+ 1) % queue.size
      case .idOutOfRange: id |= 0x4000
      case .idTwice where number > 0: id = answers[0].id
      case .lengthTooLong: length = UInt32(answer.writable) + 1
      case .indexJumps: place = Self.step(place, queue.size)
      case .changesDescriptor where answer.count > 1:
        let next = Self.step(place, queue.size)
        unsafe SharedCell<UInt16>(queue.table + 16 * Int(next & 0x7fff) + 12).storeRelaxed(0x7777)
      default: break
      }
      unsafe SharedCell<UInt32>(queue.table + 16 * Int(place & 0x7fff) + 8).storeRelaxed(length)
      unsafe SharedCell<UInt16>(queue.table + 16 * Int(place & 0x7fff) + 12).storeRelaxed(id)
      let wrap = (place & 0x8000 != 0) != (flaw == .indexBackwards)
      flags.append((place, (wrap ? 0x8080 : 0) | (length > 0 ? 2 : 0)))
      for _ in 0..<answer.count { queue.published = Self.step(queue.published, queue.size) }
    }
    if flaw == .changesAvailableIndex { queue.available(0).storeRelaxed(0x3456) }
    for (place, flags) in flags.reversed() { queue.flags(place).storeRelease(flags) }
    fullFence()
    let wanted: Bool
    switch queue.available(2).loadAcquire() {
    case 0: wanted = true
    case 2 where queue.eventIndex:
      // Whether the driver's event is among the descriptors that were passed.
      let event = queue.available(0).loadRelaxed()
      var place = old
      var isPassed = false
      while place != queue.published {
        if place == event { isPassed = true }
        place = Self.step(place, queue.size)
      }
      wanted = isPassed
    case 2, 3: wanted = true
    default: wanted = false
    }
    if (wanted && flaw != .noCall) || flaw == .callsWhenUnwanted { queue.activation.call.signal() }
  }

  private func walkPacked(_ queue: inout Queue) throws(QueueError) -> (pieces: [Piece], id: UInt16, count: UInt16) {
    func number(_ raw: [UInt8], _ range: Range<Int>) -> UInt64 { raw[range].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
    var pieces: [Piece] = []
    var total: UInt64 = 0
    func add(_ raw: [UInt8], _ head: UInt16) throws(QueueError) {
      let writes = number(raw, 14..<16) & 2 != 0
      let length = UInt32(number(raw, 8..<12))
      if !writes, pieces.last?.writes == true { throw .readableAfterWritable(head: head) }
      total += UInt64(length)
      guard total <= 1 << 32 else { throw .chainTooLarge(head: head) }
      if length > 0 { pieces.append(Piece(address: number(raw, 0..<8), length: length, writes: writes)) }
    }
    var place = queue.next
    for count in 1...queue.size {
      let raw = unsafe [UInt8](
        UnsafeRawBufferPointer(start: queue.table + 16 * Int(place & 0x7fff), count: 16))
      let (id, flags) = (UInt16(number(raw, 12..<14)), number(raw, 14..<16))
      if flags & 4 != 0 {
        guard queue.activation.features.contains(.indirectDescriptors) else { throw .indirectNotNegotiated(head: id) }
        guard count == 1, flags & 1 == 0 else { throw .indirectWithNext(head: id) }
        let (address, length) = (number(raw, 0..<8), UInt32(number(raw, 8..<12)))
        guard length > 0, length % 16 == 0, length <= 16 * 32768 else { throw .badIndirectLength(head: id, length) }
        guard let table = load(address, length, &queue) else {
          throw .indirectUnmapped(head: id, GuestAddress(address))
        }
        for entry in stride(from: 0, to: table.count, by: 16) {
          let raw = Array(table[entry..<entry + 16])
          guard number(raw, 14..<16) & 4 == 0 else { throw .nestedIndirect(head: id) }
          try add(raw, id)
        }
        return (pieces, id, 1)
      }
      try add(raw, id)
      guard flags & 1 != 0 else { return (pieces, id, count) }
      place = Self.step(place, queue.size)
    }
    throw .chainLoops(head: queue.next & 0x7fff)
  }
}

extension ReferenceDevice.Queue {
  /// The flags of the descriptor at a place of a packed ring.
  func flags(_ place: UInt16) -> SharedCell<UInt16> { unsafe SharedCell(table + 16 * Int(place & 0x7fff) + 14) }
}
