/// A split queue with a driver that obeys the specification.
import Testing
import VirtioCore

@Suite struct SplitQueueTests {
  @Test func popsAChainInOrderAndPublishesItsUsedElement() throws {
    let ring = try RingFixture(size: 8)
    let data = ring.buffers
    ring.describe(3, data, 16, RingFixture.next, next: 5)
    ring.describe(5, data + 0x1000, 512, RingFixture.next, next: 0)
    ring.describe(0, data + 0x2000, 1024, RingFixture.next | RingFixture.write, next: 7)
    ring.describe(7, data + 0x3000, 1, RingFixture.write)
    ring.makeAvailable(3)
    var queue = try ring.queue()
    let popped = try ring.popAndPush(&queue, written: 1025)
    #expect(
      popped
        == Popped(
          head: 3, readable: 2, writable: 2, readableBytes: 528, writableBytes: 1025, defect: nil,
          pieces: [
            .init(address: data, count: 16), .init(address: data + 0x1000, count: 512),
            .init(address: data + 0x2000, count: 1024), .init(address: data + 0x3000, count: 1),
          ]))
    #expect(ring.usedIndex == 0, "nothing is visible before publish")
    queue.publish()
    #expect(ring.usedIndex == 1)
    #expect(ring.usedElement(0) == (3, 1025))
    #expect(try ring.popAndPush(&queue) == nil)
    #expect(queue.position == QueuePosition(available: 1, used: 1))
  }

  /// Free-running indices across their wrap, in the smallest rings and an ordinary one (i.split.idx.1).
  @Test(arguments: [1, 2, 256]) func runsPastTheWrapOfItsIndices(size: Int) throws {
    let ring = try RingFixture(size: size)
    var queue = try ring.queue()
    for head in 0..<size { ring.describe(head, ring.buffers, 1, RingFixture.write) }
    var published: UInt16 = 0
    for round in 0..<(70000 / size) {
      for slot in 0..<size { ring.makeAvailable(UInt16((slot + round) % size)) }
      for slot in 0..<size {
        let popped = try ring.popAndPush(&queue, written: 1)
        try #require(popped?.head == UInt16((slot + round) % size))
      }
      #expect(try ring.popAndPush(&queue) == nil)
      queue.publish()
      published &+= UInt16(size)
      try #require(ring.usedIndex == published)
    }
  }

  @Test func largestRingTakesAsManyAsItHas() throws {
    let ring = try RingFixture(size: 32768)
    var queue = try ring.queue()
    for head in 0..<32768 {
      ring.describe(head, ring.buffers, 1, RingFixture.write)
      ring.makeAvailable(UInt16(head))
    }
    var count = 0
    while try ring.popAndPush(&queue) != nil { count += 1 }
    #expect(count == 32768)
  }

  // MARK: Indirect tables

  @Test(arguments: [RingFixture.indirect, RingFixture.indirect | RingFixture.write])
  func followsAnIndirectTableWhateverTheWriteFlagSays(flags: UInt16) throws {  // split.indirect.1
    let ring = try RingFixture(size: 2)
    let table = ring.buffers
    ring.describe(inTable: table, 0, ring.buffers + 0x1000, 16, RingFixture.next, next: 2)
    ring.describe(inTable: table, 2, ring.buffers + 0x2000, 512, RingFixture.next | RingFixture.write, next: 1)
    ring.describe(inTable: table, 1, ring.buffers + 0x3000, 1, RingFixture.write)
    ring.describe(1, table, 48, flags)
    ring.makeAvailable(1)
    var queue = try ring.queue([.indirectDescriptors])
    let popped = try ring.popAndPush(&queue)
    #expect(popped?.head == 1)
    #expect(popped?.readable == 1)
    #expect(popped?.writable == 2)
    #expect(popped?.pieces.map(\.count) == [16, 512, 1])
  }

  @Test func takesDirectDescriptorsFollowedByOneIndirect() throws {  // split.indirect.2
    let ring = try RingFixture(size: 4)
    let table = ring.buffers
    ring.describe(0, ring.buffers + 0x1000, 16, RingFixture.next, next: 2)
    ring.describe(2, table, 32, RingFixture.indirect)
    ring.describe(inTable: table, 0, ring.buffers + 0x2000, 512, RingFixture.next | RingFixture.write, next: 1)
    ring.describe(inTable: table, 1, ring.buffers + 0x3000, 1, RingFixture.write)
    ring.makeAvailable(0)
    var queue = try ring.queue([.indirectDescriptors])
    #expect(try ring.popAndPush(&queue)?.pieces.map(\.count) == [16, 512, 1])
  }

  @Test func readsAMisalignedIndirectTable() throws {
    let ring = try RingFixture(size: 4)
    let table = ring.buffers + 3
    ring.describe(inTable: table, 0, ring.buffers + 0x1000, 16, RingFixture.next, next: 1)
    ring.describe(inTable: table, 1, ring.buffers + 0x2000, 1, RingFixture.write)
    ring.describe(0, table, 32, RingFixture.indirect)
    ring.makeAvailable(0)
    var queue = try ring.queue([.indirectDescriptors])
    #expect(try ring.popAndPush(&queue)?.pieces.map(\.count) == [16, 1])
  }

  @Test func skipsEmptyDescriptors() throws {
    let ring = try RingFixture(size: 4)
    ring.describe(0, ring.buffers, 0, RingFixture.next, next: 1)
    ring.describe(1, ring.buffers, 16, RingFixture.next, next: 2)
    ring.describe(2, 0xdead_0000_0000, 0, RingFixture.next | RingFixture.write, next: 3)
    ring.describe(3, ring.buffers, 1, RingFixture.write)
    ring.makeAvailable(0)
    var queue = try ring.queue()
    let popped = try ring.popAndPush(&queue)
    #expect(popped?.pieces.map(\.count) == [16, 1])
    #expect(popped?.defect == nil)
  }

  // MARK: Notifications

  @Test func callsUnlessTheFlagSaysNot() throws {  // split.usednotif.1, .2, .3
    let ring = try RingFixture(size: 4)
    ring.describe(0, ring.buffers, 1, RingFixture.write)
    ring.usedEvent = 1000
    var queue = try ring.queue()
    for (flags, expected) in [(UInt16(0), true), (1, false), (0, true)] {
      ring.availableFlags = flags
      ring.makeAvailable(0)
      _ = try ring.popAndPush(&queue)
      queue.publish()
      #expect(ring.needsCall(&queue) == expected)
      #expect(ring.needsCall(&queue) == false, "the same elements need no second call")
    }
  }

  /// Every distance of the event around the wrap, against the definition: some index in [old, new) is the event.
  @Test(arguments: [1, 2, 3, 7]) func callsExactlyWhenTheEventIsPassed(batch: Int) throws {  // split.usednotif.5, .6
    for start in stride(from: 0xfff0, through: 0x1_0010, by: 1) {
      for distance in -9...9 {
        let old = UInt16(truncatingIfNeeded: start)
        let event = UInt16(truncatingIfNeeded: start + distance)
        let ring = try RingFixture(size: 8)
        ring.availableIndex = old
        ring.availableFlags = 1  // means nothing with event indices (split.usednotif.4)
        ring.usedEvent = event
        for head in 0..<8 { ring.describe(head, ring.buffers, 1, RingFixture.write) }
        var queue = try ring.queue([.eventIndex], at: QueuePosition(available: old, used: old))
        for head in 0..<batch { ring.makeAvailable(UInt16(head)) }
        for _ in 0..<batch { _ = try ring.popAndPush(&queue) }
        queue.publish()
        let expected = (0..<batch).contains { old &+ UInt16($0) == event }
        try #require(ring.needsCall(&queue) == expected, "old \(old), batch \(batch), event \(event)")
      }
    }
  }

  @Test func suppressesKicksThroughTheFlag() throws {  // split.availnotif.1, .2
    let ring = try RingFixture(size: 4)
    ring.describe(0, ring.buffers, 1, RingFixture.write)
    var queue = try ring.queue()
    #expect(try ring.popAndPush(&queue) == nil)
    #expect(ring.usedFlags == 0)
    ring.makeAvailable(0)
    _ = try ring.popAndPush(&queue)
    #expect(ring.usedFlags == 1)
    #expect(ring.enableKicks(&queue) == false)
    #expect(ring.usedFlags == 0)
  }

  @Test func suppressesKicksThroughTheEventAlone() throws {  // split.availnotif.3, .4
    let ring = try RingFixture(size: 4)
    ring.describe(0, ring.buffers, 1, RingFixture.write)
    var queue = try ring.queue([.eventIndex])
    ring.makeAvailable(0)
    _ = try ring.popAndPush(&queue)
    #expect(ring.usedFlags == 0)
    #expect(ring.enableKicks(&queue) == false)
    #expect(ring.availableEvent == 1)
    #expect(ring.usedFlags == 0)
  }

  @Test(arguments: [FeatureSet(), .eventIndex]) func looksAgainAfterEnablingKicks(features: FeatureSet) throws {
    let ring = try RingFixture(size: 4)
    ring.describe(0, ring.buffers, 1, RingFixture.write)
    var queue = try ring.queue(features)
    #expect(try ring.popAndPush(&queue) == nil)
    ring.makeAvailable(0)  // in between, without a kick
    #expect(ring.enableKicks(&queue) == true)
  }

  // MARK: Positions

  @Test func startsWhereItIsTold() throws {
    let ring = try RingFixture(size: 4)
    ring.availableIndex = 0xffff
    ring.describe(2, ring.buffers, 1, RingFixture.write)
    ring.makeAvailable(2)
    ring.store(UInt16(0xffff), at: ring.used + 2)
    var queue = try ring.queue(at: QueuePosition(available: 0xffff, used: nil))
    #expect(try ring.popAndPush(&queue)?.head == 2)
    queue.publish()
    #expect(ring.usedIndex == 0)
    #expect(queue.position == QueuePosition(available: 0, used: 0))
  }

  @Test func neverWritesTheDescriptorTable() throws {  // split.desc.4
    let ring = try RingFixture(size: 4)
    ring.describe(0, ring.buffers, 16, RingFixture.next, next: 1)
    ring.describe(1, ring.buffers, 1, RingFixture.write)
    let before = (0..<8).map { ring.load(UInt64.self, at: ring.table + UInt64($0 * 8)) }
    var queue = try ring.queue()
    ring.makeAvailable(0)
    _ = try ring.popAndPush(&queue, written: 1)
    queue.publish()
    #expect((0..<8).map { ring.load(UInt64.self, at: ring.table + UInt64($0 * 8)) } == before)
  }

  @Test func legacyLayoutIsTheFormulaOfTheSpecification() throws {  // legacy.vq.1
    let layout = try #require(QueueConfiguration.legacy(size: 256, base: GuestAddress(0x10000)))
    #expect(layout.availableRing == GuestAddress(0x10000 + 4096))
    #expect(layout.usedRing == GuestAddress(0x10000 + 0x2000))
    #expect(QueueConfiguration.legacy(size: 256, base: GuestAddress(0), alignment: 3000) == nil)
    #expect(QueueConfiguration.legacy(size: 256, base: GuestAddress(UInt64.max - 100)) == nil)
    #expect(
      QueueConfiguration.legacy(size: 8, base: GuestAddress(0), alignment: 64)?.usedRing == GuestAddress(192))
  }
}
