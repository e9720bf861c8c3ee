/// Another back-end on a packed ring, which keeps its records as the protocol's text describes them, store by store. It shares
/// nothing with the code under test.
import Testing

@testable import VirtioCore

final class ForeignPacked {
  enum Habit: Sendable {
    /// As in the text: the flags of a batch's first answer publish the whole batch.
    case batches
    /// As in SPDK.
    case oneByOne
  }

  private struct Stand: Equatable {
    var slot: Int
    var wrap: Bool

    func advanced(by span: Int, _ size: Int) -> Stand {
      slot + span < size ? Stand(slot: slot + span, wrap: wrap) : Stand(slot: slot + span - size, wrap: !wrap)
    }
  }

  private struct Chain {
    var head: Int
    var id: UInt16
    var span: Int
  }

  private let region: ForeignMemory
  private let ring: ForeignMemory
  private let size: Int
  private let habit: Habit
  private var available = Stand(slot: 0, wrap: true)
  private var used = Stand(slot: 0, wrap: true)
  private var counter: UInt64 = 0
  private var chains: [Chain] = []
  var taken: [UInt16] { chains.map(\.id) }

  // Fields of the region's header.
  private static let (free, oldFree, usedIndex, oldUsedIndex, wrap, oldWrap) = (12, 14, 16, 18, 20, 21)
  // Fields of an entry.
  private static let (mark, next, last, count, order) = (0, 2, 4, 6, 8)

  /// Starts, and takes again what it finds in flight. - Parameter hasStored: called after each of its stores.
  init(_ bench: PackedCrashBench, _ habit: Habit, hasStored: @escaping () -> Void = {}) throws {
    let place = unsafe try #require(bench.record.region(ofQueue: 1))
    region = unsafe ForeignMemory(base: place, hasStored: hasStored)
    ring = unsafe ForeignMemory(base: bench.ring.mapping.base, hasStored: hasStored)
    size = bench.form.size
    self.habit = habit
    if region.load(UInt16.self, at: 8) == 0 {
      begin(at: Stand(slot: bench.form.slot, wrap: bench.form.wrap))
    } else {
      recover()
    }
  }

  private func entry(_ number: Int, _ field: Int) -> Int { 32 + 32 * number + field }
  private func field(_ number: Int, _ field: Int) -> Int { Int(region.load(UInt16.self, at: entry(number, field))) }
  private func header(_ offset: Int) -> Int { Int(region.load(UInt16.self, at: offset)) }
  private func flags(_ slot: Int) -> UInt16 { ring.load(at: 16 * slot + 14) }

  /// Runs before the front-end gets the memory: nothing can be lost in between.
  private func begin(at start: Stand) {
    for number in 0..<size { region.store(UInt16(number + 1), at: entry(number, Self.next)) }
    for offset in [Self.usedIndex, Self.oldUsedIndex] { region.store(UInt16(start.slot), at: offset) }
    for offset in [Self.wrap, Self.oldWrap] { region.store(UInt8(start.wrap ? 1 : 0), at: offset) }
    region.store(UInt16(size), at: 10)
    region.store(UInt16(1), at: 8)
    (available, used) = (start, start)
  }

  private func recover() {
    let old = Stand(slot: header(Self.oldUsedIndex), wrap: region.load(UInt8.self, at: Self.oldWrap) != 0)
    if header(Self.usedIndex) != old.slot {
      if flags(old.slot) & 0x8080 != (old.wrap ? 0x80 : 0x8000) {
        settle()
      }
    }
    region.store(region.load(UInt16.self, at: Self.oldFree), at: Self.free)
    region.store(region.load(UInt16.self, at: Self.oldUsedIndex), at: Self.usedIndex)
    region.store(region.load(UInt8.self, at: Self.oldWrap), at: Self.wrap)
    var number = header(Self.free)
    while number < size {
      region.store(UInt8(0), at: entry(number, Self.mark))
      number = field(number, Self.next)
    }
    used = Stand(slot: header(Self.usedIndex), wrap: region.load(UInt8.self, at: Self.wrap) != 0)
    available = used
    let heads = (0..<size).filter { region.load(UInt8.self, at: entry($0, Self.mark)) == 1 }
    let orders = heads.map { (order: region.load(UInt64.self, at: entry($0, Self.order)), head: $0) }
    for (order, head) in orders.sorted(by: { $0.order < $1.order }) {
      let span = field(head, Self.count)
      let id: UInt16 = region.load(at: entry(field(head, Self.last), 16))
      chains.append(Chain(head: head, id: id, span: span))
      available = available.advanced(by: span, size)
      counter = order &+ 1
    }
  }

  func take() -> UInt16? {
    guard flags(available.slot) & 0x8080 == (available.wrap ? 0x80 : 0x8000) else { return nil }
    let head = header(Self.oldFree)
    var stand = available
    var span = 0
    while true {
      let number = header(Self.free)
      let slot = 16 * stand.slot
      let isLast = flags(stand.slot) & 1 == 0
      if span == 0 {
        region.store(UInt16(0), at: entry(head, Self.count))
        region.store(counter, at: entry(head, Self.order))
        region.store(UInt8(1), at: entry(head, Self.mark))
      }
      if isLast { region.store(UInt16(number), at: entry(head, Self.last)) }
      span += 1
      region.store(UInt16(span), at: entry(head, Self.count))
      region.store(ring.load(UInt64.self, at: slot), at: entry(number, 24))
      region.store(ring.load(UInt32.self, at: slot + 8), at: entry(number, 20))
      region.store(ring.load(UInt16.self, at: slot + 14), at: entry(number, 18))
      region.store(ring.load(UInt16.self, at: slot + 12), at: entry(number, 16))
      region.store(UInt16(field(number, Self.next)), at: Self.free)
      stand = stand.advanced(by: 1, size)
      guard isLast else { continue }
      region.store(UInt16(header(Self.free)), at: Self.oldFree)
      let id: UInt16 = ring.load(at: slot + 12)
      chains.append(Chain(head: head, id: id, span: span))
      counter &+= 1
      available = stand
      return id
    }
  }

  /// Answers some of the chains that it has taken, by their positions among them.
  func finish(_ choices: [Int]) {
    var batch: [Chain] = []
    for choice in choices where !chains.isEmpty {
      batch.append(chains.remove(at: choice % chains.count))
      if habit == .oneByOne {
        show(batch)
        batch = []
      }
    }
    show(batch)
  }

  private func show(_ batch: [Chain]) {
    guard !batch.isEmpty else { return }
    var stand = used
    var flags: [(slot: Int, flags: UInt16)] = []
    for chain in batch {
      ring.store(UInt32(1), at: 16 * stand.slot + 8)
      ring.store(chain.id, at: 16 * stand.slot + 12)
      flags.append((stand.slot, (stand.wrap ? 0x8080 : 0) | 2))
      region.store(UInt16(header(Self.free)), at: entry(field(chain.head, Self.last), Self.next))
      region.store(UInt16(chain.head), at: Self.free)
      stand = stand.advanced(by: chain.span, size)
    }
    region.store(UInt16(stand.slot), at: Self.usedIndex)
    if stand.wrap != used.wrap { region.store(UInt8(stand.wrap ? 1 : 0), at: Self.wrap) }
    // The driver looks at the first one.
    for (slot, flags) in flags.reversed() { ring.store(flags, at: 16 * slot + 14) }
    for chain in batch { region.store(UInt8(0), at: entry(chain.head, Self.mark)) }
    used = stand
    settle()
  }

  /// Commits the stored values as published.
  private func settle() {
    region.store(region.load(UInt16.self, at: Self.free), at: Self.oldFree)
    region.store(region.load(UInt16.self, at: Self.usedIndex), at: Self.oldUsedIndex)
    region.store(region.load(UInt8.self, at: Self.wrap), at: Self.oldWrap)
  }
}
