/// A device that ends between any two stores: its successor answers every head once, in the driver's order.
import Testing

@testable import VirtioCore

#if DEBUG
@Suite struct CrashTests {
  static let cases: [CrashCase] = [
    CrashCase(size: 1, batch: 1),
    CrashCase(size: 2, start: 65530, batch: 2, seed: 2),
    CrashCase(size: 4, start: 65533, hasEventIndex: true, batch: 1, seed: 3),
    CrashCase(size: 8, isIndirect: true, batch: 8, seed: 4),
    CrashCase(size: 8, start: 65530, isIndirect: true, hasEventIndex: true, batch: 3, seed: 5),
    CrashCase(size: 16, start: 40000, batch: 16, seed: 6),
    CrashCase(size: 4, start: 65533, batch: 4, seed: 11, isInOrder: true),
    CrashCase(size: 8, isIndirect: true, hasEventIndex: true, batch: 6, seed: 12, isInOrder: true),
    CrashCase(size: 64, start: 65500, hasEventIndex: true, batch: 40, steps: 6, seed: 7),
  ]

  @Test(arguments: cases) func everyMomentIsRecovered(_ form: CrashCase) throws {
    let bench = try CrashBench(form)
    let moments = try bench.watching { try bench.live() }
    try #require(moments.count > 50)
    for moment in moments {
      bench.restore(moment)
      try Self.recover(bench, "after \(moment.place)")
    }
  }

  /// The successor ends at any point, too, even after it has begun to answer.
  @Test(arguments: cases) func everyMomentOfEveryRecoveryIsRecovered(_ form: CrashCase) throws {
    var form = form
    form.steps = min(form.steps, form.size > 16 ? 2 : 8)
    let bench = try CrashBench(form)
    let moments = try bench.watching { try bench.live() }
    for moment in moments {
      bench.restore(moment)
      let again = try bench.watching { try Self.recover(bench, "after \(moment.place)") }
      // The continuation is long for a full ring, and repetitive.
      for (number, second) in again.enumerated() where number < 40 || number % 7 == 0 {
        bench.restore(second)
        try Self.recover(bench, "after \(moment.place), then \(second.place)")
      }
    }
  }

  /// Many devices, one after the other: each ends somewhere, and begins with what the previous one left.
  @Test func longChainOfCrashesLosesNothing() throws {
    let bench = try CrashBench(CrashCase(size: 16, start: 65000, hasEventIndex: true, batch: 5, steps: 4, seed: 8))
    var random = SplitMix(state: 9)
    for life in 0..<300 {
      let moments = try bench.watching { try bench.liveOn() }
      guard let moment = moments.randomElement(using: &random) else { continue }
      bench.restore(moment)
      let expected = try bench.unanswered()
      let device = try bench.device()
      var order: [UInt16] = []
      while let head = try device.retake() { order.append(head) }
      while let head = try device.take() { order.append(head) }
      try #require(order == expected, "life \(life), after \(moment.place)")
      bench.restore(moment)
    }
    try Self.recover(bench, "at the end")
  }

  /// The tests above pass every kill point of the ring.
  @Test func everyPlaceIsPassed() throws {
    let bench = try CrashBench(CrashCase(size: 8, batch: 3, seed: 10))
    var places = Set(try bench.watching { try bench.live() }.map(\.place))
    let shown = try #require(try bench.watching { try bench.live() }.first { $0.place == .publishShown })
    bench.restore(shown)
    places.formUnion(try bench.watching { try Self.recover(bench, "") }.map(\.place))
    #expect(Set(KillPoint.allCases).subtracting(places) == [.answerPushed, .callDue, .callDone], "those belong to the worker")
  }

  /// Starts with the present state, and answers everything.
  static func recover(_ bench: CrashBench, _ note: String) throws {
    let expected = try bench.unanswered()
    let shown = bench.ring.usedIndex
    let device = try bench.device()
    let interrupted = device.interrupted
    try #require(
      device.position == QueuePosition(available: shown &+ UInt16(interrupted), used: shown), "\(note)")
    var order: [UInt16] = []
    while let head = try device.retake() { order.append(head) }
    try #require(order.count == interrupted, "\(note)")
    while let head = try device.take() { order.append(head) }
    try #require(order == expected, "\(note)")
    // Last in, first out, in batches of three.
    while device.inFlight > 0 {
      for _ in 0..<3 { device.answer(device.inFlight - 1) }
      device.publish()
    }
    try #require(try bench.unanswered().isEmpty, "\(note)")
    try #require(bench.ring.usedIndex == bench.ring.availableIndex, "\(note)")
    let region = bench.regionContents
    try #require((0..<bench.form.size).allSatisfy { region[16 + 16 * $0] == 0 }, "\(note): nothing is in flight any more")
    try #require(UInt16(region[14]) | UInt16(region[15]) << 8 == bench.ring.usedIndex, "\(note)")
  }
}

extension CrashBench {
  /// Like `live`, with a device that starts from the present state.
  func liveOn() throws {
    try reap()
    let device = try device()
    while try device.retake() != nil {}
    for step in 0..<form.steps {
      makeAvailable(3)
      while device.inFlight < 12, try device.take() != nil {}
      for number in 0..<3 + step { device.answer(number * 7) }
      device.publish()
      try reap()
    }
  }
}
#endif
