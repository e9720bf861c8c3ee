/// What a driver can do wrong in a packed ring, and the error that the queue reports.
import Testing
import VirtioCore

@Suite struct BrokenPackedRingTests {
  private typealias Ring = PackedFixture
  private typealias Buffer = PackedFixture.Buffer

  /// A case: what the driver does in a ring of 4 slots, and the error that a pop then throws.
  struct Case: CustomTestStringConvertible, Sendable {
    var name: String
    var features: FeatureSet = [.indirectDescriptors]
    var prepare: @Sendable (PackedFixture) -> Void
    var expected: QueueError
    var testDescription: String { name }
  }

  private static func indirect(
    _ length: UInt32, at address: UInt64? = nil, flags: UInt16 = 0
  ) -> @Sendable (PackedFixture) -> Void {
    { $0.makeAvailable(5, [Buffer(address: address ?? $0.buffers, length: length, flags: Ring.indirect | flags)]) }
  }

  static let end = Ring.base + UInt64(Ring.bytes)
  static let cases: [Case] = [
    Case(
      name: "a list that goes round the whole ring",
      prepare: { ring in
        for slot in 0..<4 {
          ring.makeAvailable(0, [Buffer(address: ring.buffers, length: 1)])
          ring.setFlags(slot, 0x80 | Ring.next)
        }
      }, expected: .chainLoops(head: 0)),
    Case(
      name: "more than 2^32 bytes",
      prepare: { $0.makeAvailable(1, [Buffer(address: 0, length: .max), Buffer(address: 0, length: 2)]) },
      expected: .chainTooLarge(head: 0)),
    Case(name: "table of 0 bytes", prepare: indirect(0), expected: .badIndirectLength(head: 0, 0)),
    Case(name: "table that is not a multiple of 16", prepare: indirect(17), expected: .badIndirectLength(head: 0, 17)),
    Case(
      name: "table beyond the limit", prepare: indirect(1025 * 16), expected: .badIndirectLength(head: 0, 1025 * 16)),
    Case(
      name: "indirect with next", prepare: indirect(16, flags: Ring.next), expected: .indirectWithNext(head: 0)),
    Case(
      name: "indirect in a list",
      prepare: {
        $0.makeAvailable(
          1, [Buffer(address: $0.buffers, length: 1), Buffer(address: $0.buffers, length: 16, flags: Ring.indirect)])
      }, expected: .indirectInList(head: 0)),
    Case(
      name: "indirect not negotiated", features: [], prepare: indirect(16), expected: .indirectNotNegotiated(head: 0)),
    Case(
      name: "table outside memory", prepare: indirect(16, at: 0x10),
      expected: .indirectUnmapped(head: 0, GuestAddress(0x10))),
    Case(
      name: "table that leaves memory",
      prepare: {
        $0.describe(inTable: end - 16, 0, Buffer(address: $0.buffers, length: 1))
        $0.makeAvailable(0, [Buffer(address: end - 16, length: 32, flags: Ring.indirect)])
      }, expected: .indirectUnmapped(head: 0, GuestAddress(end - 16))),
    Case(
      name: "table that leaves the address space", prepare: indirect(32, at: UInt64.max - 15),
      expected: .indirectUnmapped(head: 0, GuestAddress(UInt64.max - 15))),
    Case(
      name: "readable after writable",
      prepare: {
        $0.makeAvailable(
          1, [Buffer(address: $0.buffers, length: 1, flags: Ring.write), Buffer(address: $0.buffers, length: 1)])
      }, expected: .readableAfterWritable(head: 0)),
    Case(
      name: "readable after writable in a table",
      prepare: {
        $0.describe(inTable: $0.buffers, 0, Buffer(address: $0.buffers, length: 1, flags: Ring.write))
        $0.describe(inTable: $0.buffers, 1, Buffer(address: $0.buffers, length: 1))
        $0.makeAvailable(0, [Buffer(address: $0.buffers, length: 32, flags: Ring.indirect)])
      }, expected: .readableAfterWritable(head: 0)),
    Case(
      name: "the last writable byte outside memory",
      prepare: {
        $0.makeAvailable(
          0, [Buffer(address: $0.buffers, length: 16), Buffer(address: UInt64.max - 3, length: 16, flags: Ring.write)])
      }, expected: .statusUnmapped(head: 0)),
  ]

  @Test(arguments: cases) func aBrokenRingIsNamedAndNothingIsTaken(_ broken: Case) throws {
    let ring = try PackedFixture(size: 4)
    broken.prepare(ring)
    var queue = try ring.queue(broken.features)
    let before = queue.position
    #expect(throws: broken.expected) { _ = try ring.popAndPush(&queue) }
    #expect(queue.position == before && queue.unpublished == 0)
    #expect(!broken.expected.description.isEmpty)
  }

  @Test func aBufferInFlightIsNotTakenTwice() throws {
    let ring = try PackedFixture(size: 4)
    var queue = try ring.queue()
    let held = PackedFixture.Held()
    for _ in 0..<2 { ring.makeAvailable(65535, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)]) }
    #expect(try ring.take(&queue, held)?.head == 65535)
    #expect(throws: QueueError.bufferAlreadyInFlight(65535)) { _ = try ring.take(&queue, held) }
  }

  @Test func slotsAreNotTakenBeforeTheyWereUsed() throws {
    for isIndirect in [false, true] {
      let ring = try PackedFixture(size: 2)
      ring.describe(inTable: ring.buffers, 0, Buffer(address: ring.buffers, length: 1, flags: Ring.write))
      let buffer =
        isIndirect
        ? Buffer(address: ring.buffers, length: 16, flags: Ring.indirect)
        : Buffer(address: ring.buffers, length: 1, flags: Ring.write)
      var queue = try ring.queue()
      let held = PackedFixture.Held()
      for id: UInt16 in 0..<2 {
        ring.makeAvailable(id, [buffer])
        #expect(try ring.take(&queue, held)?.head == id)
      }
      ring.makeAvailable(2, [buffer])
      #expect(throws: QueueError.slotNotFree(0)) { _ = try ring.take(&queue, held) }
    }
  }

  /// A driver reuses slots whose answers have not been published yet: the record of answers has room for one
  /// ring.
  @Test(arguments: [1, 2, 4, 8]) func slotsAreNotTakenBeforeTheirAnswersAreShown(size: Int) throws {
    func attack<Book: BufferBook & ~Copyable>(_ fixture: PackedFixture, _ queue: inout PackedRing<Book>) throws {
      let buffer = Buffer(address: fixture.buffers, length: 1, flags: PackedFixture.write)
      for id in 0..<size {
        fixture.makeAvailable(UInt16(id), [buffer])
        #expect(try fixture.popAndPush(&queue)?.head == UInt16(id))
      }
      #expect(queue.unpublished == size)
      fixture.makeAvailable(100, [buffer])
      #expect(throws: QueueError.slotNotFree(0)) { _ = try fixture.popAndPush(&queue) }
      queue.publish()
      #expect(queue.unpublished == 0)
    }
    let plain = try PackedFixture(size: size)
    var queue = try plain.queue()
    try attack(plain, &queue)
    let fixture = try PackedFixture(size: size)
    let memory = try InflightMemory.create(queueCount: 1, queueSize: UInt16(size), isPacked: true)
    var recorded = try RecordedPackedQueue(
      fixture.configuration, memory: fixture.memory, features: [.packedRing, .indirectDescriptors],
      position: fixture.position, record: InflightRecord(memory, queue: 0))
    try attack(fixture, &recorded)
  }

  @Test func buffersOutsideMemoryAreADefectOfTheRequest() throws {
    for (address, length) in [(UInt64(0x10), UInt32(512)), (Self.end - 1, 2), (UInt64.max - 10, 512), (Self.end, 1)] {
      let ring = try PackedFixture(size: 4, at: (2, true))
      ring.makeAvailable(
        0,
        [
          Buffer(address: ring.buffers, length: 16), Buffer(address: address, length: length, flags: Ring.write),
          Buffer(address: ring.buffers + 64, length: 1, flags: Ring.write),
        ])
      var queue = try ring.queue()
      let popped = try ring.popAndPush(&queue)
      #expect(popped?.defect == .unmapped, "\(address) + \(length)")
      #expect(popped?.writableBytes == UInt64(length) + 1)
      queue.publish()
      #expect(try ring.reap()?.id == 0)
    }
  }

  @Test func moreSegmentsThanThereIsRoomForAreADefectOfTheRequest() throws {
    let ring = try PackedFixture(size: 16)
    ring.makeAvailable(
      0, (0..<16).map { Buffer(address: ring.buffers, length: 1, flags: $0 == 15 ? Ring.write : 0) })
    var queue = try ring.queue()
    #expect(try ring.popAndPush(&queue, capacity: 8)?.defect == .tooManySegments)
  }

  /// An invalid queue configuration, which is refused before any of it is accessed.
  struct Start: CustomTestStringConvertible, Sendable {
    var name: String
    var change: @Sendable (inout QueueConfiguration, inout QueuePosition) -> Void
    var expected: QueueError
    var testDescription: String { name }
  }

  static let starts: [Start] = [
    Start(name: "size 0", change: { (queue, _) in queue.size = 0 }, expected: .badPackedSize(0)),
    Start(name: "size 32769", change: { (queue, _) in queue.size = 32769 }, expected: .badPackedSize(32769)),
    Start(
      name: "misaligned ring", change: { (queue, _) in queue.descriptorTable = GuestAddress(Ring.base + 8) },
      expected: .misaligned(part: .descriptorRing, GuestAddress(Ring.base + 8))),
    Start(
      name: "misaligned driver events", change: { (queue, _) in queue.availableRing = GuestAddress(Ring.base + 2) },
      expected: .misaligned(part: .driverEvents, GuestAddress(Ring.base + 2))),
    Start(
      name: "misaligned device events", change: { (queue, _) in queue.usedRing = GuestAddress(Ring.base + 1) },
      expected: .misaligned(part: .deviceEvents, GuestAddress(Ring.base + 1))),
    Start(
      name: "ring outside memory", change: { (queue, _) in queue.descriptorTable = GuestAddress(0) },
      expected: .unmapped(part: .descriptorRing, GuestAddress(0))),
    Start(
      name: "ring that leaves memory", change: { (queue, _) in queue.descriptorTable = GuestAddress(end - 48) },
      expected: .unmapped(part: .descriptorRing, GuestAddress(end - 48))),
    Start(
      name: "driver events at the end of memory", change: { (queue, _) in queue.availableRing = GuestAddress(end) },
      expected: .unmapped(part: .driverEvents, GuestAddress(end))),
    Start(
      name: "device events at the end of the address space",
      change: { (queue, _) in queue.usedRing = GuestAddress(UInt64.max - 3) },
      expected: .unmapped(part: .deviceEvents, GuestAddress(UInt64.max - 3))),
    Start(
      name: "a slot beyond the ring", change: { (_, position) in position = QueuePosition(available: 0x8004, used: nil) },
      expected: .badPosition(
        available: PackedPosition(slot: 4, wrap: true), used: PackedPosition(slot: 4, wrap: true), size: 4)),
    Start(
      name: "more used than available",
      change: { (_, position) in position = QueuePosition(available: 0x8001, used: 0x8002) },
      expected: .badPosition(
        available: PackedPosition(slot: 1, wrap: true), used: PackedPosition(slot: 2, wrap: true), size: 4)),
    Start(
      name: "more than a round in flight",
      change: { (_, position) in position = QueuePosition(available: 0x0003, used: 0x8002) },
      expected: .badPosition(
        available: PackedPosition(slot: 3, wrap: false), used: PackedPosition(slot: 2, wrap: true), size: 4)),
  ]

  @Test(arguments: starts) func aQueueThatCannotBeIsRefused(_ start: Start) throws {
    let ring = try PackedFixture(size: 4)
    var (configuration, position) = (ring.configuration, ring.position)
    start.change(&configuration, &position)
    #expect(throws: start.expected) {
      _ = try PackedQueue(configuration, memory: ring.memory, features: [.packedRing], position: position)
    }
    #expect(!start.expected.description.isEmpty)
  }

  /// Random bytes in the ring cause an error, or chains that can all be answered; nothing traps and nothing goes on forever.
  @Test(arguments: 0..<8) func anyRingIsRefusedOrSurvived(seed: Int) throws {
    var random = SplitMix(state: UInt64(seed))
    for _ in 0..<300 {
      let size = 1 + random.next(below: 9)
      let ring = try PackedFixture(size: size, at: (random.next(below: size), random.next(below: 2) == 0))
      var queue = try ring.queue(random.next(below: 2) == 0 ? [.indirectDescriptors] : [.eventIndex])
      let held = PackedFixture.Held()
      var ids: [UInt16] = []
      // Bounded by the test: a driver that keeps writing nonsense is served, or told that its queue is broken.
      for _ in 0..<40 {
        for _ in 0..<(4 * size) {
          let place = ring.ring + UInt64(random.next(below: 16 * size + 8))
          ring.store(UInt8(random.next(below: 256)), at: place)
        }
        for slot in 0..<size where random.next(below: 2) == 0 {
          ring.store(ring.buffers + UInt64(random.next(below: 4096)), at: ring.place(slot))
          ring.store(UInt32(16 * random.next(below: 4)), at: ring.place(slot) + 8)
        }
        do {
          while let popped = try ring.take(&queue, held) { ids.append(popped.head) }
        } catch {
          #expect(!error.description.isEmpty)
          break
        }
        #expect(ids.count <= size)
        while !ids.isEmpty, random.next(below: 3) > 0 {
          ring.answer(&queue, held, ids.remove(at: random.next(below: ids.count)), written: 1)
        }
        queue.publish()
        _ = ring.needsCall(&queue)
        _ = ring.enableKicks(&queue)
      }
    }
  }
}
