/// Watches a split ring (virtio 2.6) alongside the device, sharing no code with it.
internal import VirtioCore

final class SplitWatch: QueueWatch, @unchecked Sendable {
  private var seen: UInt16 = 0
  /// The used index that the device published last; `nil`: none yet.
  private var shown: UInt16?
  private var table: UInt64 { setup.configuration.descriptorTable.rawValue }
  private var available: UInt64 { setup.configuration.availableRing.rawValue }
  private var used: UInt64 { setup.configuration.usedRing.rawValue }

  override func begin(at position: QueuePosition) {
    seen = position.available
    shown = nil
    // A previous owner of the ring may have left its own values there.
    guard setup.isFresh, position == QueuePosition(), let flags = reader.word(used) else { return }
    findings.judge(
      "d.split.availnotif.1", flags == 0, queue: queue, "the used ring", "used.flags is \(flags) at the start")
  }

  override var standing: UInt16 { seen }

  override func takeAvailable() {
    guard let index = reader.word(available + 2) else { return }
    let moved = Int(index &- seen)
    guard moved != 0 else { return }
    guard
      findings.judge(
        "d.split.avail.1", moved <= size, queue: queue, "avail.idx", bytes: [UInt8(index & 0xff), UInt8(index >> 8)],
        "the index went from \(seen) to \(index) in a ring of \(size) entries")
    else {
      isLost = true
      return
    }
    checkFlags()
    take(seen)
    seen &+= 1
    ahead += 1
  }

  private func checkFlags() {
    guard let flags = reader.word(available) else { return }
    if hasEventIndex {
      findings.judge(
        "d.split.usednotif.3", flags == 0, queue: queue, "avail.flags", "it is \(flags), and EVENT_IDX was accepted")
    } else {
      findings.judge("d.split.usednotif.1", flags <= 1, queue: queue, "avail.flags", "it is \(flags)")
    }
  }

  private func take(_ index: UInt16) {
    let slot = Int(index) & (size - 1)
    guard let head = reader.word(available + 4 + 2 * UInt64(slot)) else { return }
    var chain = SeenChain(name: head, place: "avail.ring[\(slot)], descriptor \(head)")
    let isFree = Int(head) < size && chains[head] == nil
    findings.judge(
      "i.driver.head", isFree, queue: queue, "avail.ring[\(slot)]", bytes: [UInt8(head & 0xff), UInt8(head >> 8)],
      Int(head) < size ? "the device has the chain at \(head) already" : "there is no descriptor \(head) in a table of \(size)")
    guard isFree else { return }
    walk(&chain)
    finish(&chain)
    chains[head] = chain
  }

  // MARK: Chains

  private func walk(_ chain: inout SeenChain) {
    var visited = Set<Int>()
    var index = Int(chain.name)
    var total: UInt64 = 0
    while true {
      guard visited.insert(index).inserted else {
        findings.broken("d.split.desc.1", queue: queue, chain.place, "the chain comes back to descriptor \(index)")
        chain.isBroken = true
        return
      }
      guard let bytes = reader.bytes(table + 16 * UInt64(index), 16) else {
        chain.isBroken = true
        return
      }
      let descriptor = SeenDescriptor(bytes, isPacked: false)
      let place = "descriptor \(index)"
      chain.entries.append(.init(address: table + 16 * UInt64(index), place: place, ordinal: nil, bytes: bytes))
      chain.slots += 1
      if descriptor.has(SeenDescriptor.indirect) {
        let isAllowed = findings.judge(
          "d.split.indirect.1", setup.features.contains(.indirectDescriptors), queue: queue, place, bytes: bytes,
          "INDIRECT is set, and INDIRECT_DESC was not accepted")
        let isLast = findings.judge(
          "d.split.indirect.4", !descriptor.has(SeenDescriptor.next), queue: queue, place, bytes: bytes,
          "INDIRECT and NEXT are both set")
        guard isAllowed, isLast else {
          chain.isBroken = true
          return
        }
        walkTable(descriptor, &chain, &total)
        guard !chain.isBroken else { return }
        break
      }
      add(descriptor, place, &chain, &total)
      guard descriptor.has(SeenDescriptor.next) else { break }
      let next = Int(descriptor.link)
      if isInOrder {
        findings.judge(
          "d.split.desc.2", next == (index + 1) % size, queue: queue, place, bytes: bytes,
          "next is \(next), and IN_ORDER was accepted")
      }
      guard
        findings.judge(
          "i.driver.next", next < size, queue: queue, place, bytes: bytes, "next is \(next) in a table of \(size)")
      else {
        chain.isBroken = true
        return
      }
      index = next
    }
    findings.judge(
      "d.split.desc.1", total <= 1 << 32, queue: queue, chain.place, "the chain is \(total) bytes long, more than 2^32")
    findings.judge(
      "d.split.indirect.3", chain.readable.count + chain.writable.count <= size, queue: queue, chain.place,
      "the chain has \(chain.readable.count + chain.writable.count) descriptors in a queue of \(size)")
  }

  private func walkTable(_ descriptor: SeenDescriptor, _ chain: inout SeenChain, _ total: inout UInt64) {
    let count = Int(descriptor.length / 16)
    guard
      findings.judge(
        "i.driver.table", count > 0 && descriptor.length % 16 == 0, queue: queue, chain.place, bytes: descriptor.bytes,
        "the table is \(descriptor.length) bytes long")
    else {
      chain.isBroken = true
      return
    }
    var visited = Set<Int>()
    var index = 0
    while true {
      guard visited.count < mostEntries else {
        findings.broken(
          "d.split.indirect.3", queue: queue, chain.place, bytes: descriptor.bytes,
          "the chain goes through more than the \(mostEntries) table entries that the device accepts")
        chain.isBroken = true
        return
      }
      let address = descriptor.address &+ 16 * UInt64(index)
      guard let bytes = reader.bytes(address, 16) else {
        chain.isBroken = true
        return
      }
      let entry = SeenDescriptor(bytes, isPacked: false)
      let place = "\(chain.place), table entry \(index)"
      guard visited.insert(index).inserted else {
        findings.broken("d.split.desc.1", queue: queue, place, bytes: bytes, "the chain comes back to this entry")
        chain.isBroken = true
        return
      }
      chain.entries.append(.init(address: address, place: place, ordinal: nil, bytes: bytes))
      guard
        findings.judge(
          "d.split.indirect.2", !entry.has(SeenDescriptor.indirect), queue: queue, place, bytes: bytes,
          "INDIRECT is set inside a table")
      else {
        chain.isBroken = true
        return
      }
      add(entry, place, &chain, &total)
      guard entry.has(SeenDescriptor.next) else { return }
      let next = Int(entry.link)
      if isInOrder {
        findings.judge(
          "d.split.indirect.5", next == index + 1, queue: queue, place, bytes: bytes,
          "next is \(next), and IN_ORDER was accepted")
      }
      guard
        findings.judge(
          "i.driver.next", next < count, queue: queue, place, bytes: bytes, "next is \(next) in a table of \(count)")
      else {
        chain.isBroken = true
        return
      }
      index = next
    }
  }

  private func add(_ descriptor: SeenDescriptor, _ place: String, _ chain: inout SeenChain, _ total: inout UInt64) {
    total += UInt64(descriptor.length)
    let piece = SeenChain.Piece(address: descriptor.address, length: descriptor.length)
    if descriptor.has(SeenDescriptor.write) {
      chain.writable.append(piece)
      return
    }
    findings.judge(
      "d.split.frame.1", chain.writable.isEmpty, queue: queue, place, bytes: descriptor.bytes,
      "a readable descriptor comes after a writable one")
    chain.readable.append(piece)
  }

  // MARK: Used

  override func checkUsed() {
    guard let shown, let now = reader.word(used + 2) else { return }
    findings.judge(
      "i.driver.used", now == shown, queue: queue, "used.idx", bytes: [UInt8(now & 0xff), UInt8(now >> 8)],
      "it is \(now), and the device had written \(shown)")
  }

  override func noteUsed() { shown = reader.word(used + 2) }

  /// The flags, and with EVENT_IDX the index as well.
  override var wish: [UInt8]? {
    guard let flags = reader.bytes(used, 2) else { return nil }
    return hasEventIndex ? reader.bytes(used + 4 + 8 * UInt64(size), 2).map { flags + $0 } : flags
  }
}
