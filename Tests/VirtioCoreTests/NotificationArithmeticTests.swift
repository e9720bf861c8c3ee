/// When a driver is notified: for every (old, new, event) in small packed rings, and for all near a wrap in a split one. The
/// expected result is found by counting, slot by slot.
import Testing

@testable import VirtioCore

struct NotificationArithmeticTests {
  @Test("packed: an event is due when its slot was passed, in every ring up to six slots", arguments: 1...6)
  func packed(_ size: Int) {
    let all = (0..<size).flatMap { [PackedPosition(slot: $0, wrap: false), PackedPosition(slot: $0, wrap: true)] }
    for old in all {
      for count in 1...size {
        let new = old.advanced(by: count, size: size)
        let passed = (0..<count).map { old.advanced(by: $0, size: size) }
        for event in all {
          let isDue = PackedEvent.passing(event).isDue(
            at: new, passed: UInt64(count), size: UInt16(size), hasEventIndex: true)
          #expect(isDue == passed.contains(event), "\(old) to \(new), event \(event)")
        }
        for (event, isDue) in [(PackedEvent.always, true), (.never, false)] {
          #expect(event.isDue(at: new, passed: UInt64(count), size: UInt16(size), hasEventIndex: true) == isDue)
        }
      }
    }
  }

  /// Where 16 bits wrap, where their sign would, and where a ring begins.
  static let places: [UInt16] = [0x0000, 0x8000, 0x4000]

  @Test("split: an event is due when its index was passed, around every wrap", arguments: places)
  func split(_ place: UInt16) throws {
    let size = 4
    let fixture = try RingFixture(size: size)
    for slot in 0..<size { fixture.describe(slot, fixture.buffers, 1, RingFixture.write) }
    for step in -6...6 {
      let old = place &+ UInt16(truncatingIfNeeded: step)
      for count in 1...UInt16(size) {
        let far: [UInt16] = [old &+ 0x7fff, old &+ 0x8000, old &+ 0x8001, old &- 0x4000]
        for event in (-7...11).map({ old &+ UInt16(truncatingIfNeeded: $0) }) + far {
          fixture.store(old, at: fixture.available + 2)
          fixture.store(old, at: fixture.used + 2)
          var queue = try fixture.queue(.eventIndex, at: QueuePosition(available: old, used: old))
          for chain in 0..<count { fixture.makeAvailable(chain) }
          while try fixture.popAndPush(&queue) != nil {}
          queue.publish()
          #expect(fixture.usedIndex == old &+ count)
          fixture.usedEvent = event
          let passed = (0..<count).contains { old &+ $0 == event }
          let (isDue, again) = (queue.needsCall(), queue.needsCall())
          #expect(isDue == passed, "\(old) and \(count) more, event \(event)")
          // A decision is not repeated.
          #expect(!again)
        }
      }
    }
  }
}
