/// Watches a packed ring (virtio 2.7) alongside the device, sharing no code with it.
internal import VirtioCore

final class PackedWatch: QueueWatch, @unchecked Sendable {
  private static let marks: UInt16 = 0x8080

  /// Where the next chain becomes available.
  private var next = PackedPosition.start
  /// How many slots were seen, and how many answered, since the beginning: the ring's own numbers repeat with each lap.
  private var seenSlots: UInt64 = 0
  private var usedSlots: UInt64 = 0
  /// Slots of the ring that belong to the device.
  private var taken: Int { Int(clamping: seenSlots &- usedSlots) }
  private var ring: UInt64 { setup.configuration.descriptorTable.rawValue }

  override func begin(at position: QueuePosition) {
    next = PackedPosition(rawValue: position.available)
    let nextUsed = position.used.map { PackedPosition(rawValue: $0) } ?? next
    (seenSlots, usedSlots) = (UInt64(next.distance(from: nextUsed, size: size) ?? 0), 0)
  }

  private func descriptor(_ slot: Int) -> SeenDescriptor? {
    // The flags first: if they mark the descriptor as available, the rest of it is valid.
    guard let flags = reader.word(ring + 16 * UInt64(slot) + 14) else { return nil }
    guard var bytes = reader.bytes(ring + 16 * UInt64(slot), 16) else { return nil }
    (bytes[14], bytes[15]) = (UInt8(flags & 0xff), UInt8(flags >> 8))
    return SeenDescriptor(bytes, isPacked: true)
  }

  private func isAvailable(_ flags: UInt16, _ position: PackedPosition) -> Bool {
    flags & Self.marks == (position.wrap ? 0x0080 : 0x8000)
  }

  override var standing: UInt16 { next.rawValue }

  override func takeAvailable() {
    checkEvent()
    guard let head = descriptor(next.slot), isAvailable(head.flags, next) else { return }
    guard take(head) else {
      isLost = true
      return
    }
    ahead += 1
  }

  /// - Returns: false when the ring cannot be followed any further.
  private func take(_ head: SeenDescriptor) -> Bool {
    var chain = SeenChain(place: "slot \(next.slot)")
    var position = next
    var descriptor = head
    let room = size - taken
    var id = head.link
    while true {
      let place = "slot \(position.slot)"
      guard
        findings.judge(
          "d.packed.sg.2", chain.slots < size, queue: queue, chain.place, bytes: head.bytes,
          "the list is longer than the whole ring of \(size)")
      else { return false }
      guard
        findings.judge(
          "d.packed.sg.5", chain.slots < room, queue: queue, place, bytes: descriptor.bytes,
          "the list is longer than the \(room) slots that were free")
      else { return false }
      chain.entries.append(
        .init(
          address: ring + 16 * UInt64(position.slot), place: place, ordinal: seenSlots &+ UInt64(chain.slots),
          bytes: descriptor.bytes))
      chain.slots += 1
      id = descriptor.link
      add(descriptor, place, &chain)
      position = position.advanced(by: 1, size: size)
      guard descriptor.has(SeenDescriptor.next) else { break }
      guard let following = self.descriptor(position.slot) else { return false }
      let isMarked = isAvailable(following.flags, position)
      if chain.slots < room {
        findings.judge(
          "d.packed.sg.6", isMarked, queue: queue, "slot \(position.slot)", bytes: following.bytes,
          "the list's first descriptor is available, and this one is not")
      }
      descriptor = following
    }
    chain.name = id
    chain.place += ", buffer \(id)"
    let isFree = findings.judge(
      "i.driver.head", chains[id] == nil, queue: queue, chain.place, bytes: head.bytes, "the device has buffer \(id) already")
    next = position
    seenSlots &+= UInt64(chain.slots)
    finish(&chain)
    judgeLength(chain)
    if isFree { chains[id] = chain }
    return isFree
  }

  private func judgeLength(_ chain: SeenChain) {
    guard !chain.isBroken, let most = setup.limits.segments else { return }
    let data = chain.readable.count + chain.writable.count
    let rule = chain.entries.contains { $0.ordinal == nil } ? "d.packed.indirect.3" : "d.packed.sg.1"
    findings.judge(
      rule, data <= Int(most) + 2, queue: queue, chain.place,
      "the list has \(data) elements: seg_max is \(most), to which a header and a status are added")
  }

  private func add(_ descriptor: SeenDescriptor, _ place: String, _ chain: inout SeenChain) {
    guard descriptor.has(SeenDescriptor.indirect) else { return add(descriptor, place, &chain, isInTable: false) }
    let isAllowed = findings.judge(
      "d.packed.indirect.1", setup.features.contains(.indirectDescriptors), queue: queue, place, bytes: descriptor.bytes,
      "INDIRECT is set, and INDIRECT_DESC was not accepted")
    let isAlone = findings.judge(
      "d.packed.indirect.4", chain.slots == 1 && !descriptor.has(SeenDescriptor.next), queue: queue, place,
      bytes: descriptor.bytes, "an INDIRECT descriptor is part of a list")
    let count = Int(descriptor.length / 16)
    let isTable = findings.judge(
      "i.driver.table", count > 0 && descriptor.length % 16 == 0, queue: queue, place, bytes: descriptor.bytes,
      "the table is \(descriptor.length) bytes long")
    guard isAllowed, isAlone, isTable else {
      chain.isBroken = true
      return
    }
    guard count <= mostEntries else {
      findings.broken(
        "d.packed.indirect.3", queue: queue, place, bytes: descriptor.bytes,
        "the table has \(count) entries, more than the \(mostEntries) that the device accepts")
      chain.isBroken = true
      return
    }
    for index in 0..<count {
      let address = descriptor.address &+ 16 * UInt64(index)
      guard let bytes = reader.bytes(address, 16) else {
        chain.isBroken = true
        return
      }
      let entry = SeenDescriptor(bytes, isPacked: true)
      let name = "\(place), table entry \(index)"
      chain.entries.append(.init(address: address, place: name, ordinal: nil, bytes: bytes))
      findings.judge(
        "d.packed.indirect.2", entry.flags & ~SeenDescriptor.write == 0, queue: queue, name, bytes: bytes,
        "flags other than WRITE are set inside a table")
      add(entry, name, &chain, isInTable: true)
    }
  }

  private func add(_ descriptor: SeenDescriptor, _ place: String, _ chain: inout SeenChain, isInTable: Bool) {
    let piece = SeenChain.Piece(address: descriptor.address, length: descriptor.length)
    if descriptor.has(SeenDescriptor.write) {
      chain.writable.append(piece)
      return
    }
    findings.judge(
      "d.packed.sg.3", chain.writable.isEmpty, queue: queue, place, bytes: descriptor.bytes,
      "a readable element comes after a writable one")
    chain.readable.append(piece)
  }

  private func checkEvent() {
    guard let flags = reader.word(setup.configuration.availableRing.rawValue + 2) else { return }
    findings.judge(
      "i.driver.event", flags & 3 <= (hasEventIndex ? 2 : 1), queue: queue, "the driver event area",
      "its flags are \(flags)\(hasEventIndex ? "" : ", and EVENT_IDX was not accepted")")
  }

  // MARK: Used

  /// Slots that used descriptors have passed belong to the driver again, even those of a chain that is not answered yet: the
  /// device answers in any order.
  override func isOwned(_ entry: SeenChain.Entry) -> Bool {
    guard let ordinal = entry.ordinal else { return true }
    return ordinal >= usedSlots
  }

  override func entryChanged(_ entry: SeenChain.Entry, _ now: [UInt8]) {
    guard entry.ordinal != nil else { return }
    let marks = SeenDescriptor(now, isPacked: true).flags ^ SeenDescriptor(entry.bytes, isPacked: true).flags
    let rule = marks & Self.marks != 0 ? "d.packed.desc.1" : "d.packed.desc.2"
    findings.broken(rule, queue: queue, entry.place, bytes: now, "it was \(hexadecimal(entry.bytes)), and is not used yet")
  }

  override func goOver(_ chain: SeenChain?) {
    guard let chain else {
      isLost = true
      return
    }
    findings.kept("d.packed.desc.1", "d.packed.desc.2")
    usedSlots &+= UInt64(chain.slots)
  }

  override var wish: [UInt8]? { reader.bytes(setup.configuration.usedRing.rawValue, 4) }
}
