/// Another back-end on a split ring, which keeps its records as the protocol's text describes them, store by store. It shares
/// nothing with the code under test.
import Testing

@testable import VirtioCore

/// Memory that a back-end writes in single stores; it can end after each of them.
@safe
struct ForeignMemory {
  let base: UnsafeMutableRawPointer
  let hasStored: () -> Void

  func load<Value: FixedWidthInteger>(_ type: Value.Type = Value.self, at offset: Int) -> Value {
    unsafe Value(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: Value.self))
  }

  func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    unsafe base.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Value.self)
    hasStored()
  }
}

final class ForeignSplit {
  enum Habit: Sendable {
    /// As in the text: answers are linked and published in batches.
    case batches
    /// As in libvhost-user and DPDK: one answer at a time, without links.
    case oneByOne
  }

  private let bench: CrashBench
  private let region: ForeignMemory
  private let ring: ForeignMemory
  private let habit: Habit
  private var available: UInt16 = 0
  private var used: UInt16
  private var counter: UInt64 = 0
  private(set) var taken: [UInt16] = []

  /// Starts, and takes again what it finds in flight. - Parameter hasStored: called after each of its stores.
  init(_ bench: CrashBench, _ habit: Habit, hasStored: @escaping () -> Void = {}) throws {
    self.bench = bench
    self.habit = habit
    let place = unsafe try #require(bench.record.region(ofQueue: 1))
    region = unsafe ForeignMemory(base: place, hasStored: hasStored)
    ring = unsafe ForeignMemory(base: bench.ring.mapping.base, hasStored: hasStored)
    used = bench.ring.usedIndex
    recover()
  }

  private func place(_ head: UInt16) -> Int { 16 + 16 * Int(head) }
  private func usedPlace(_ index: UInt16) -> Int {
    Int(bench.ring.used - RingFixture.base) + 4 + 8 * (Int(index) % bench.form.size)
  }

  private func recover() {
    if region.load(UInt16.self, at: 8) == 0 {
      region.store(UInt16(bench.form.size), at: 10)
      // They rely on a ring beginning at 0, or on not ending before the first answer.
      region.store(UInt16(1), at: 8)
    } else if region.load(UInt16.self, at: 14) != used {
      var head = region.load(UInt16.self, at: 12)
      for _ in 0..<(habit == .batches ? used &- region.load(UInt16.self, at: 14) : 1) {
        region.store(UInt8(0), at: place(head))
        head = region.load(at: place(head) + 6)
      }
      region.store(used, at: 14)
    }
    let heads = (0..<UInt16(bench.form.size)).filter { region.load(UInt8.self, at: place($0)) == 1 }
    let orders = heads.map { (order: region.load(UInt64.self, at: place($0) + 8), head: $0) }.sorted { $0.order < $1.order }
    taken = orders.map(\.head)
    counter = (orders.last?.order ?? 0) &+ 1
    available = used &+ UInt16(taken.count)
  }

  func take() -> UInt16? {
    guard available != bench.ring.availableIndex else { return nil }
    let entry = bench.ring.available + 4 + 2 * UInt64(Int(available) % bench.form.size)
    let head: UInt16 = bench.ring.load(at: entry)
    region.store(counter, at: place(head) + 8)
    region.store(UInt8(1), at: place(head))
    counter &+= 1
    available &+= 1
    taken.append(head)
    return head
  }

  /// Answers some of the heads that it has taken, by their positions among them.
  func finish(_ choices: [Int]) {
    var batch: [UInt16] = []
    for choice in choices where !taken.isEmpty {
      batch.append(taken.remove(at: choice % taken.count))
      if habit == .oneByOne {
        show(batch)
        batch = []
      }
    }
    show(batch)
  }

  private func show(_ batch: [UInt16]) {
    guard !batch.isEmpty else { return }
    for head in batch {
      ring.store(UInt32(head), at: usedPlace(used))
      ring.store(UInt32(1), at: usedPlace(used) + 4)
      used &+= 1
      if habit == .batches { region.store(region.load(UInt16.self, at: 12), at: place(head) + 6) }
      region.store(head, at: 12)
    }
    ring.store(used, at: Int(bench.ring.used - RingFixture.base) + 2)
    for head in batch { region.store(UInt8(0), at: place(head)) }
    region.store(used, at: 14)
  }
}
