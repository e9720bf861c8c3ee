/// What a driver can do wrong in a split ring, and the error that the queue reports.
import Testing
import VirtioCore

@Suite struct BrokenRingTests {
  private typealias Ring = RingFixture

  /// A case: what the driver does in a ring of 4, and the error that a pop then throws.
  struct Case: CustomTestStringConvertible, Sendable {
    var name: String
    var features: FeatureSet = [.indirectDescriptors]
    var prepare: @Sendable (RingFixture) -> Void
    var expected: QueueError
    var testDescription: String { name }
  }

  static let cases: [Case] = [
    Case(
      name: "row 1: avail.idx jumps past the ring", prepare: { $0.availableIndex = 5 },
      expected: .availableIndexJumped(from: 0, to: 5, size: 4)),
    Case(
      name: "row 2: avail.idx goes backwards", prepare: { $0.availableIndex = 0xffff },
      expected: .availableIndexJumped(from: 0, to: 0xffff, size: 4)),
    Case(name: "row 3: head outside the table", prepare: { $0.makeAvailable(4) }, expected: .headOutOfRange(4)),
    Case(
      name: "row 3: head far outside the table", prepare: { $0.makeAvailable(0xffff) },
      expected: .headOutOfRange(0xffff)),
    Case(
      name: "row 4: next outside the table",
      prepare: {
        $0.describe(0, $0.buffers, 1, Ring.next, next: 4)
        $0.makeAvailable(0)
      }, expected: .nextOutOfRange(4)),
    Case(
      name: "row 4: next outside an indirect table",
      prepare: {
        $0.describe(inTable: $0.buffers, 0, $0.buffers, 1, Ring.next, next: 2)
        $0.describe(0, $0.buffers, 32, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .nextOutOfRange(2)),
    Case(
      name: "row 5: a chain that loops",
      prepare: {
        $0.describe(0, $0.buffers, 1, Ring.next, next: 1)
        $0.describe(1, $0.buffers, 1, Ring.next, next: 0)
        $0.makeAvailable(0)
      }, expected: .chainLoops(head: 0)),
    Case(
      name: "row 5: a descriptor that follows itself",
      prepare: {
        $0.describe(2, $0.buffers, 0, Ring.next, next: 2)
        $0.makeAvailable(2)
      }, expected: .chainLoops(head: 2)),
    Case(
      name: "row 5: an indirect table that loops",
      prepare: {
        $0.describe(inTable: $0.buffers, 0, $0.buffers, 1, Ring.next, next: 0)
        $0.describe(0, $0.buffers, 32, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .chainLoops(head: 0)),
    Case(
      name: "row 9: more than 2^32 bytes",
      prepare: {
        $0.describe(0, 0, .max, Ring.next, next: 1)
        $0.describe(1, 0, 2, 0)
        $0.makeAvailable(0)
      }, expected: .chainTooLarge(head: 0)),
    Case(
      name: "row 10: indirect table of 0 bytes",
      prepare: {
        $0.describe(0, $0.buffers, 0, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .badIndirectLength(head: 0, 0)),
    Case(
      name: "row 10: indirect table that is not a multiple of 16",
      prepare: {
        $0.describe(0, $0.buffers, 17, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .badIndirectLength(head: 0, 17)),
    Case(
      name: "row 10: indirect table beyond the limit",
      prepare: {
        $0.describe(0, $0.buffers, 1025 * 16, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .badIndirectLength(head: 0, 1025 * 16)),
    Case(
      name: "row 11: indirect inside indirect",
      prepare: {
        $0.describe(inTable: $0.buffers, 0, $0.buffers, 16, Ring.indirect)
        $0.describe(0, $0.buffers, 16, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .nestedIndirect(head: 0)),
    Case(
      name: "row 11: indirect with next",
      prepare: {
        $0.describe(0, $0.buffers, 16, Ring.indirect | Ring.next, next: 1)
        $0.makeAvailable(0)
      }, expected: .indirectWithNext(head: 0)),
    Case(
      name: "row 11: indirect not negotiated", features: [],
      prepare: {
        $0.describe(0, $0.buffers, 16, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .indirectNotNegotiated(head: 0)),
    Case(
      name: "row 12: readable after writable",
      prepare: {
        $0.describe(0, $0.buffers, 1, Ring.next | Ring.write, next: 1)
        $0.describe(1, $0.buffers, 1)
        $0.makeAvailable(0)
      }, expected: .readableAfterWritable(head: 0)),
    Case(
      name: "row 13: indirect table outside memory",
      prepare: {
        $0.describe(0, 0x10, 16, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .indirectUnmapped(head: 0, GuestAddress(0x10))),
    Case(
      name: "row 13: indirect table that leaves memory",
      prepare: {
        let end = Ring.base + UInt64(Ring.bytes)
        $0.describe(inTable: end - 16, 0, $0.buffers, 1, Ring.next, next: 1)
        $0.describe(0, end - 16, 32, Ring.indirect)
        $0.makeAvailable(0)
      }, expected: .indirectUnmapped(head: 0, GuestAddress(Ring.base + UInt64(Ring.bytes) - 16))),
    Case(
      name: "row 13: the last writable byte outside memory",
      prepare: {
        $0.describe(0, $0.buffers, 16, Ring.next, next: 1)
        $0.describe(1, UInt64.max - 3, 16, Ring.write)
        $0.makeAvailable(0)
      }, expected: .statusUnmapped(head: 0)),
  ]

  @Test(arguments: cases) func aBrokenRingIsNamedAndNothingIsTaken(_ broken: Case) throws {
    let ring = try RingFixture(size: 4)
    broken.prepare(ring)
    var queue = try ring.queue(broken.features)
    let before = queue.position
    #expect(throws: broken.expected) { _ = try ring.popAndPush(&queue) }
    #expect(queue.position == before)
    #expect(ring.usedIndex == 0)
  }

  @Test func row6AHeadInFlightIsNotTakenTwice() throws {
    let ring = try RingFixture(size: 4)
    ring.describe(1, ring.buffers, 1, Ring.write)
    ring.makeAvailable(1, 1)
    var queue = try ring.queue()
    #expect(try ring.popAndAbandon(&queue) == 1)
    #expect(throws: QueueError.headAlreadyInFlight(1)) { _ = try ring.popAndAbandon(&queue) }
  }

  @Test func row6AHeadCanComeBackOnceItWasUsed() throws {
    let ring = try RingFixture(size: 4)
    ring.describe(1, ring.buffers, 1, Ring.write)
    var queue = try ring.queue()
    for _ in 0..<10 {
      ring.makeAvailable(1)
      #expect(try ring.popAndPush(&queue)?.head == 1)
    }
  }

  /// Defects that the request is told of, because its status byte can be reached.
  @Test func row13BuffersOutsideMemoryAreADefectOfTheRequest() throws {
    let end = Ring.base + UInt64(Ring.bytes)
    for (address, length) in [(UInt64(0x10), UInt32(512)), (end - 1, 2), (UInt64.max - 10, 512), (end, 1)] {
      let ring = try RingFixture(size: 4)
      ring.describe(0, ring.buffers, 16, Ring.next, next: 1)
      ring.describe(1, address, length, Ring.next | Ring.write, next: 2)
      ring.describe(2, ring.buffers + 64, 1, Ring.write)
      ring.makeAvailable(0)
      var queue = try ring.queue()
      let popped = try ring.popAndPush(&queue)
      #expect(popped?.defect == .unmapped, "\(address) + \(length)")
      #expect(popped?.writableBytes == UInt64(length) + 1)
    }
  }

  @Test func moreSegmentsThanThereIsRoomForAreADefectOfTheRequest() throws {
    let ring = try RingFixture(size: 16)
    for index in 0..<15 { ring.describe(index, ring.buffers, 1, Ring.next, next: UInt16(index + 1)) }
    ring.describe(15, ring.buffers, 1, Ring.write)
    ring.makeAvailable(0)
    var queue = try ring.queue()
    #expect(try ring.popAndPush(&queue, capacity: 8)?.defect == .tooManySegments)
  }

  /// An invalid queue configuration, which is refused before any of it is accessed (rows 14 and 15).
  struct Start: CustomTestStringConvertible, Sendable {
    var name: String
    var change: @Sendable (inout QueueConfiguration) -> Void
    var expected: QueueError
    var testDescription: String { name }
  }

  static let end = GuestAddress(Ring.base + UInt64(Ring.bytes))
  static let starts: [Start] = [
    Start(name: "size 0", change: { $0.size = 0 }, expected: .badSize(0)),
    Start(name: "size 3", change: { $0.size = 3 }, expected: .badSize(3)),
    Start(name: "size 65535", change: { $0.size = 65535 }, expected: .badSize(65535)),
    Start(name: "size 32769", change: { $0.size = 32769 }, expected: .badSize(32769)),
    Start(
      name: "misaligned table", change: { $0.descriptorTable = GuestAddress(Ring.base + 8) },
      expected: .misaligned(part: .descriptorTable, GuestAddress(Ring.base + 8))),
    Start(
      name: "misaligned available ring", change: { $0.availableRing = GuestAddress(Ring.base + 1) },
      expected: .misaligned(part: .availableRing, GuestAddress(Ring.base + 1))),
    Start(
      name: "misaligned used ring", change: { $0.usedRing = GuestAddress(Ring.base + 2) },
      expected: .misaligned(part: .usedRing, GuestAddress(Ring.base + 2))),
    Start(
      name: "table outside memory", change: { $0.descriptorTable = GuestAddress(0) },
      expected: .unmapped(part: .descriptorTable, GuestAddress(0))),
    Start(
      name: "available ring at the end of memory", change: { $0.availableRing = end },
      expected: .unmapped(part: .availableRing, end)),
    Start(
      name: "used ring crosses the end of memory", change: { $0.usedRing = GuestAddress(end.rawValue - 8) },
      expected: .unmapped(part: .usedRing, GuestAddress(end.rawValue - 8))),
    Start(
      name: "used ring at the end of the address space", change: { $0.usedRing = GuestAddress(UInt64.max - 3) },
      expected: .unmapped(part: .usedRing, GuestAddress(UInt64.max - 3))),
  ]

  @Test(arguments: starts) func aQueueThatCannotBeIsRefused(_ start: Start) throws {
    let ring = try RingFixture(size: 4)
    var configuration = ring.configuration
    start.change(&configuration)
    #expect(throws: start.expected) {
      _ = try SplitQueue(configuration, memory: ring.memory, features: [], position: QueuePosition())
    }
  }
}
