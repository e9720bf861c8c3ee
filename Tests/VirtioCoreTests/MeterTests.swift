/// How much of a flood of messages passes.
import Testing
import VirtioCore

@Suite struct MeterTests {
  private let start = ContinuousClock.now

  @Test func burstPassesAndTheRestIsCounted() {
    var meter = Meter(burst: 3, interval: .seconds(1))
    let verdicts = (0..<5).map { _ in meter.ask(at: start) }
    #expect(verdicts == [.pass(heldBack: 0), .pass(heldBack: 0), .pass(heldBack: 0), .hold, .hold])
    #expect(meter.ask(at: start + .milliseconds(999)) == .hold)
    #expect(meter.ask(at: start + .milliseconds(1000)) == .pass(heldBack: 3))
    #expect(meter.ask(at: start + .milliseconds(1001)) == .hold)
  }

  /// Asking often must not prevent the interval from passing.
  @Test func impatienceChangesNothing() {
    var meter = Meter(burst: 1, interval: .seconds(1))
    let passed = (0..<100).filter { meter.ask(at: start + .milliseconds($0 * 100)) != .hold }
    #expect(passed == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
  }

  @Test func quietTimesFillItUpAndNoFurther() {
    var meter = Meter(burst: 2, interval: .seconds(1))
    _ = meter.ask(at: start)
    _ = meter.ask(at: start)
    let later = start + .seconds(3600)
    #expect((0..<3).map { _ in meter.ask(at: later) } == [.pass(heldBack: 0), .pass(heldBack: 0), .hold])
  }
}
