/// Records of other back-ends, and this one's records in other back-ends: whichever ends between any two stores, the other one
/// answers every chain once, in the driver's order.
import Testing

@testable import VirtioCore

#if DEBUG
@Suite struct ForeignRecordTests {
  static let splits: [CrashCase] = [
    CrashCase(size: 1, batch: 1, seed: 21),
    CrashCase(size: 4, batch: 3, seed: 22),
    CrashCase(size: 8, isIndirect: true, batch: 8, seed: 23),
    CrashCase(size: 16, hasEventIndex: true, batch: 5, seed: 24),
  ]

  @Test(arguments: splits, [ForeignSplit.Habit.batches, .oneByOne])
  func weContinueTheirSplitRing(_ form: CrashCase, _ habit: ForeignSplit.Habit) throws {
    let bench = try CrashBench(form)
    var moments: [CrashBench.Moment] = []
    // A back-end that has only requested the memory can end, too.
    let first = try ForeignSplit(bench, habit) { moments.append(bench.moment(.publishOver)) }
    try Self.live(first, bench, steps: form.steps, batch: form.batch, seed: form.seed)
    try #require(moments.count > 50)
    for (number, moment) in moments.enumerated() {
      bench.restore(moment)
      try CrashTests.recover(bench, "after their store \(number)")
    }
  }

  /// They store no index before their first answer, and a ring that was stopped or migrated does not begin at 0.
  @Test(arguments: [ForeignSplit.Habit.batches, .oneByOne])
  func weContinueTheirRingThatDidNotBeginAtZero(_ habit: ForeignSplit.Habit) throws {
    let bench = try CrashBench(CrashCase(size: 8, start: 3, steps: 6, seed: 25))
    for index in 0..<UInt64(3) { bench.ring.store(UInt32(5), at: bench.ring.used + 4 + 8 * index) }
    var moments: [CrashBench.Moment] = []
    let first = try ForeignSplit(bench, habit) { moments.append(bench.moment(.publishOver)) }
    try Self.live(first, bench, steps: 6, batch: 3, seed: 25)
    for (number, moment) in moments.enumerated() {
      bench.restore(moment)
      try CrashTests.recover(bench, "after their store \(number)")
    }
  }

  @Test(arguments: splits) func theyContinueOurSplitRing(_ form: CrashCase) throws {
    let bench = try CrashBench(form)
    let moments = try bench.watching { try bench.live() }
    for moment in moments {
      bench.restore(moment)
      let expected = try bench.unanswered()
      // A device that ended before its region was valid has nothing to recover, and had taken nothing.
      let next = try ForeignSplit(bench, .batches)
      while next.take() != nil {}
      try #require(next.taken == expected, "after \(moment.place)")
      while !next.taken.isEmpty { next.finish([5, 3, 1]) }
      try #require(try bench.unanswered().isEmpty, "after \(moment.place)")
    }
  }

  static let packed: [PackedCrashBench.Form] = [
    .init(size: 1, batch: 1, seed: 31),
    .init(size: 4, batch: 3, seed: 32),
    .init(size: 7, slot: 5, wrap: false, batch: 4, seed: 33),
    .init(size: 8, slot: 7, isIndirect: true, batch: 8, seed: 34),
    .init(size: 16, batch: 5, steps: 30, seed: 35),
  ]

  @Test(arguments: packed, [ForeignPacked.Habit.batches, .oneByOne])
  func weContinueTheirPackedRing(_ form: PackedCrashBench.Form, _ habit: ForeignPacked.Habit) throws {
    let bench = try PackedCrashBench(form)
    var moments: [PackedCrashBench.Moment] = []
    let first = try ForeignPacked(bench, habit) { moments.append(bench.moment(.publishOver)) }
    // The list of free entries exists before a front-end has the memory.
    moments = []
    var random = SplitMix(state: form.seed)
    for _ in 0..<form.steps {
      bench.makeAvailable(1 + random.next(below: form.size))
      while random.next(below: 4) > 0, first.take() != nil {}
      first.finish((0..<random.next(below: form.batch + 1)).map { _ in random.next(below: 1 << 16) })
      if random.next(below: 2) > 0 { try bench.reap() }
    }
    try #require(moments.count > 50)
    for (number, moment) in moments.enumerated() {
      bench.restore(moment)
      try PackedCrashTests.recover(bench, "after their store \(number)")
    }
  }

  /// Except for a ring of one slot: the text compares slots, and there is no second one.
  @Test(arguments: packed.dropFirst()) func theyContinueOurPackedRing(_ form: PackedCrashBench.Form) throws {
    let bench = try PackedCrashBench(form)
    let moments = try bench.watching { try bench.live() }
    for moment in moments {
      bench.restore(moment)
      let expected = try bench.unanswered()
      let next = try ForeignPacked(bench, .oneByOne)
      while next.take() != nil {}
      try #require(next.taken == expected, "after \(moment.place)")
      while !next.taken.isEmpty { next.finish([5, 3, 1]) }
      try #require(try bench.unanswered().isEmpty, "after \(moment.place)")
    }
  }

  private static func live(_ device: ForeignSplit, _ bench: CrashBench, steps: Int, batch: Int, seed: UInt64) throws {
    var random = SplitMix(state: seed)
    for _ in 0..<steps {
      bench.makeAvailable(1 + random.next(below: bench.form.size))
      while random.next(below: 4) > 0, device.take() != nil {}
      device.finish((0..<random.next(below: batch + 1)).map { _ in random.next(below: 1 << 16) })
      if random.next(below: 2) > 0 { try bench.reap() }
    }
  }
}
#endif
