/// The two models that are compared: what a medium may contain, and what a driver may rely on.
import Testing

@testable import CrashCheck

/// Short functions for events.
private func write(_ number: Int, _ sectors: Range<Int>, durable: Bool = false) -> CrashEvent {
  .asked(number, GuestRequest(kind: .write, sectors: sectors, isDurable: durable))
}
private func flush(_ number: Int) -> CrashEvent {
  .asked(number, GuestRequest(kind: .flush, sectors: 0..<0, isDurable: false))
}
private func start(_ number: Int, _ first: Int, _ writes: UInt32..., durable: Bool = false) -> CrashEvent {
  .started(
    number,
    MediumChange(kind: .contents, isDurable: durable, firstSector: first, contents: writes.map { .written($0) }))
}
private func startFlush(_ number: Int) -> CrashEvent {
  .started(number, MediumChange(kind: .flush, isDurable: false, firstSector: 0, contents: []))
}
private func end(_ number: Int, _ result: Int32 = 512) -> CrashEvent { .finished(number, result: result) }

@Suite struct PowerFailureTests {
  struct Case: CustomTestStringConvertible, Sendable {
    var name: String
    var events: [CrashEvent]
    /// For each of two sectors: the write that is there for certain, 0 for none.
    var stable: [UInt32]
    var uncertain: [Int]
    var testDescription: String { name }
  }

  static let cases: [Case] = [
    Case(name: "written", events: [start(0, 0, 1), end(0)], stable: [0, 0], uncertain: [0]),
    Case(name: "in flight", events: [start(0, 0, 1)], stable: [0, 0], uncertain: [0]),
    Case(
      name: "flushed", events: [start(0, 0, 1), end(0), startFlush(1), end(1, 0)], stable: [1, 0], uncertain: []),
    Case(
      name: "the flush is not over", events: [start(0, 0, 1), end(0), startFlush(1)], stable: [0, 0], uncertain: [0]),
    Case(
      name: "the flush failed", events: [start(0, 0, 1), end(0), startFlush(1), end(1, -5)], stable: [0, 0],
      uncertain: [0]),
    Case(
      name: "the flush began before the write was done", events: [start(0, 0, 1), startFlush(1), end(0), end(1, 0)],
      stable: [0, 0], uncertain: [0]),
    Case(name: "durable", events: [start(0, 0, 1, durable: true), end(0)], stable: [1, 0], uncertain: []),
    Case(name: "durable, in flight", events: [start(0, 0, 1, durable: true)], stable: [0, 0], uncertain: [0]),
    Case(
      name: "durable, failed", events: [start(0, 0, 1, durable: true), end(0, -5)], stable: [0, 0], uncertain: [0]),
    Case(
      name: "durable, and fell short", events: [start(0, 0, 1, 1, durable: true), end(0, 512)], stable: [1, 0],
      uncertain: [1]),
    Case(
      name: "a failed write is never stable", events: [start(0, 0, 1), end(0, -5), startFlush(1), end(1, 0)],
      stable: [0, 0], uncertain: [0]),
    Case(
      name: "a durable write covers an older one",
      events: [start(0, 0, 1, 1), end(0, 1024), start(1, 0, 2, durable: true), end(1)],
      stable: [2, 0], uncertain: [1]),
    Case(
      name: "a newer one stays open", events: [start(0, 0, 1), end(0), startFlush(1), start(2, 0, 2), end(2), end(1, 0)],
      stable: [1, 0], uncertain: [0]),
    Case(
      name: "two of the same sector in one flush",
      events: [start(0, 0, 1), end(0), start(1, 0, 2), end(1), startFlush(2), end(2, 0)], stable: [2, 0], uncertain: []),
  ]

  @Test(arguments: cases) func whatIsCertain(_ test: Case) {
    var medium = PowerFailure(sectors: 2)
    for event in test.events { medium.take(event) }
    #expect(medium.stable == test.stable.map { $0 == 0 ? .zeroes : .written($0) })
    #expect(medium.uncertain.sectors == test.uncertain)
  }

  /// Of two writes to a sector either may be there, even the older one, or neither.
  @Test func anySubsetMayBeThere() {
    var medium = PowerFailure(sectors: 2)
    for event in [start(0, 0, 1), end(0), start(1, 0, 2, 2), end(1, 1024)] { medium.take(event) }
    var random = Numbers()
    var seen: Set<[SectorContent]> = []
    for choice in 0..<4 {
      var image = medium.stable
      medium.apply(to: &image, using: &random) { choice >> $0 & 1 == 1 ? .whole : .none }
      seen.insert(image)
    }
    #expect(
      seen == [
        [.zeroes, .zeroes], [.written(1), .zeroes], [.written(2), .written(2)],
      ])
    for _ in 0..<64 {
      var image = medium.stable
      medium.apply(to: &image, using: &random) { _ in .some }
      seen.insert(image)
    }
    // Torn writes, too: sectors 0 and 1 are independent.
    #expect(seen.count == 6)
  }

  private struct Numbers: RandomNumberGenerator {
    var state: UInt64 = 1
    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state ^ state >> 29
    }
  }
}

@Suite struct GuestPromiseTests {
  struct Case: CustomTestStringConvertible, Sendable {
    var name: String
    var events: [CrashEvent]
    /// Writes that sector 0 may contain, 0 for the initial zeroes.
    var allowed: Set<UInt32>
    var testDescription: String { name }
  }

  static let cases: [Case] = [
    Case(name: "asked for", events: [write(1, 0..<1)], allowed: [0, 1]),
    Case(name: "answered", events: [write(1, 0..<1), .answered(1)], allowed: [0, 1]),
    Case(name: "flushed", events: [write(1, 0..<1), .answered(1), flush(2), .answered(2)], allowed: [1]),
    Case(name: "a flush that is not answered", events: [write(1, 0..<1), .answered(1), flush(2)], allowed: [0, 1]),
    Case(
      name: "a flush that was asked for before the answer", events: [write(1, 0..<1), flush(2), .answered(1), .answered(2)],
      allowed: [0, 1]),
    Case(name: "stable at its answer", events: [write(1, 0..<1, durable: true), .answered(1)], allowed: [1]),
    Case(
      name: "the cache was turned on meanwhile", events: [write(1, 0..<1, durable: true), .cacheTurnedOn, .answered(1)],
      allowed: [0, 1]),
    Case(
      name: "the cache was turned on afterwards", events: [write(1, 0..<1, durable: true), .answered(1), .cacheTurnedOn],
      allowed: [1]),
    Case(
      name: "written again", events: [write(1, 0..<1, durable: true), .answered(1), write(2, 0..<1), .answered(2)],
      allowed: [1, 2]),
    Case(
      name: "written again, and flushed",
      events: [write(1, 0..<1), .answered(1), write(2, 0..<1), .answered(2), flush(3), .answered(3)], allowed: [2]),
    Case(
      name: "two flushes", events: [write(1, 0..<1), .answered(1), flush(2), flush(3), .answered(3), .answered(2)],
      allowed: [1]),
    Case(
      name: "discarded",
      events: [
        write(1, 0..<1, durable: true), .answered(1), .asked(2, GuestRequest(kind: .discard, sectors: 0..<1, isDurable: false)),
      ], allowed: [0, 1, 2, 3]),
    Case(
      name: "zeroed",
      events: [
        write(1, 0..<1, durable: true), .answered(1),
        .asked(2, GuestRequest(kind: .zero, sectors: 0..<1, isDurable: true)), .answered(2),
      ], allowed: [0]),
    Case(name: "somewhere else", events: [write(1, 1..<2, durable: true), .answered(1)], allowed: [0]),
  ]

  @Test(arguments: cases) func whatMayBeThere(_ test: Case) {
    var promise = GuestPromise(sectors: 2)
    for event in test.events { promise.take(event) }
    let allowed = (0...3 as ClosedRange<UInt32>).filter { promise.allows($0 == 0 ? .zeroes : .written($0), in: 0) }
    #expect(Set(allowed) == test.allowed, "\(promise.describe(0))")
  }
}

@Suite struct SectorContentTests {
  @Test func sectorsTellWhatTheyAre() {
    let stamp = SectorStamp(seed: 77)
    var bytes = stamp.payload(4..<7, write: 9)
    #expect(stamp.contents(of: bytes, at: 4) == [.written(9), .written(9), .written(9)])
    // At another offset, of another run, torn, or changed in one bit.
    #expect(stamp.contents(of: bytes, at: 5) == [.foreign, .foreign, .foreign])
    #expect(SectorStamp(seed: 78).contents(of: bytes, at: 4) == [.foreign, .foreign, .foreign])
    bytes[511] ^= 1
    bytes.replaceSubrange(768..<1024, with: stamp.payload(5..<6, write: 8)[256...])
    #expect(stamp.contents(of: bytes, at: 4) == [.foreign, .foreign, .written(9)])
    #expect(stamp.contents(of: [UInt8](repeating: 0, count: 512), at: 0) == [.zeroes])
  }
}
