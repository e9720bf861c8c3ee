/// A split ring with an in-flight record: what it records, what it accepts from others, and what it survives.
import Testing

@testable import VirtioCore

@Suite struct InflightRingTests {
  /// The record after each step of two heads, byte by byte in the layout of vhost-user.
  @Test func recordIsInTheStandardLayout() throws {
    let bench = try CrashBench(CrashCase(size: 4, start: 65535))
    let device = try bench.device()
    #expect(bench.header == Header(version: 1, entries: 4, last: 0, used: 65535))
    bench.ring.makeAvailable(2, 1)
    #expect(try device.take() == 2)
    #expect(try device.take() == 1)
    #expect(bench.entry(2).mark == 1 && bench.entry(2).order & 0xFFFF == 65535)
    #expect(bench.entry(1).mark == 1 && bench.entry(1).order == bench.entry(2).order + 1)
    #expect(bench.entry(0).mark == 0 && bench.entry(3).mark == 0)
    device.answer(1)
    device.answer(0)
    #expect(bench.entry(1).mark == 1 && bench.entry(2).mark == 1, "nothing is freed before it is published")
    #expect(bench.header.last == 2 && bench.entry(2).link == 1)
    device.publish()
    #expect(bench.entry(1).mark == 0 && bench.entry(2).mark == 0)
    #expect(bench.header == Header(version: 1, entries: 4, last: 2, used: 1))
  }

  /// Another back-end, before or after this one, may record the ring's number of entries instead of the region's.
  @Test func recordOfALargerRegionIsTaken() throws {
    let bench = try CrashBench(CrashCase(size: 4))
    let record = try InflightMemory.create(queueCount: 1, queueSize: 256)
    func queue() throws(QueueError) -> RecordedSplitQueue {
      try RecordedSplitQueue(
        bench.ring.configuration, memory: bench.ring.memory, features: [], position: QueuePosition(),
        record: InflightRecord(record, queue: 0))
    }
    _ = try queue()
    let entries = unsafe try #require(record.region(ofQueue: 0)) + 10
    #expect(unsafe entries.load(as: UInt16.self) == 256)
    for recorded: UInt16 in [4, 17, 255] {
      unsafe entries.storeBytes(of: recorded, as: UInt16.self)
      _ = try queue()
    }
    for recorded: UInt16 in [0, 3, 257, 65535] {
      unsafe entries.storeBytes(of: recorded, as: UInt16.self)
      #expect(throws: QueueError.inflightSize(recorded: recorded, size: 4)) { _ = try queue() }
    }
  }

  @Test func queuesWithoutARegionThatIsLargeEnoughAreRefused() throws {
    let bench = try CrashBench(CrashCase(size: 4))
    func queue(_ record: InflightRecord?) throws(QueueError) {
      _ = try RecordedSplitQueue(
        bench.ring.configuration, memory: bench.ring.memory, features: [], position: QueuePosition(), record: record)
    }
    #expect(throws: QueueError.inflightMissing) { try queue(nil) }
    let small = try InflightMemory.create(queueCount: 1, queueSize: 2)
    #expect(throws: QueueError.inflightMissing) { try queue(InflightRecord(small, queue: 1)) }
    #expect(throws: QueueError.inflightSize(recorded: 2, size: 4)) { try queue(InflightRecord(small, queue: 0)) }
  }

  @Test(arguments: [2, 3, 0xFF, 0x100, 65535] as [UInt16]) func unknownVersionIsRefused(version: UInt16) throws {
    let bench = try CrashBench(CrashCase(size: 4))
    bench.header.version = version
    #expect(throws: QueueError.inflightVersion(version)) { try bench.device() }
  }

  /// The content of an unused region means nothing.
  @Test func versionZeroIsFresh() throws {
    let bench = try CrashBench(CrashCase(size: 4, start: 7))
    bench.setRegion(bench.regionContents.map { _ in 0xFF })
    bench.header = Header(version: 0, entries: 99, last: 99, used: 99)
    bench.makeAvailable(4)
    let device = try bench.device()
    #expect(device.interrupted == 0 && device.position == QueuePosition(available: 7, used: 7))
    #expect(bench.header == Header(version: 1, entries: 4, last: 0, used: 7))
    let expected = try bench.unanswered()
    for head in expected { #expect(try device.take() == head) }
  }

  /// Back-ends that publish one head at a time write no link: only the last one is free.
  @Test func batchOfOneNeedsNoLink() throws {
    let bench = try CrashBench(CrashCase(size: 4))
    let first = try bench.device()
    bench.makeAvailable(3)
    let heads = try bench.unanswered()
    for head in heads { #expect(try first.take() == head) }
    first.answer(1)
    first.publish()
    // As it was between the index and the mark, with a link to nowhere.
    bench.header.used = 0
    bench.setEntry(heads[1]) {
      $0.mark = 1
      $0.link = 65535
    }
    let second = try bench.device()
    #expect(second.interrupted == 2)
    #expect(try second.retake() == heads[0])
    #expect(try second.retake() == heads[2])
    #expect(try second.retake() == nil)
    #expect(bench.header.used == 1)
  }

  /// Heads come back in the order of their counters, not of their numbers; equal counters in the order of their numbers.
  @Test func ordersDecide() throws {
    let bench = try CrashBench(CrashCase(size: 8))
    _ = try bench.device()
    bench.ring.makeAvailable(0, 1, 2, 3, 4)
    for (head, order) in [(0, 9), (1, 70000), (2, 9), (3, UInt64.max), (4, 0)] as [(UInt16, UInt64)] {
      bench.setEntry(head) {
        $0.mark = 1
        $0.order = order
      }
    }
    let device = try bench.device()
    #expect(device.position == QueuePosition(available: 5, used: 0))
    for head: UInt16 in [4, 0, 2, 1, 3] { #expect(try device.retake() == head) }
    #expect(try device.retake() == nil)
  }

  /// Later heads get a greater order than all recovered ones, with the ring's index in the low bits.
  @Test func ordersGoOnAfterARecovery() throws {
    let bench = try CrashBench(CrashCase(size: 8, start: 100))
    _ = try bench.device()
    bench.ring.makeAvailable(5, 6)
    bench.setEntry(5) {
      $0.mark = 1
      $0.order = 0x7_0000 + 500
    }
    let device = try bench.device()
    #expect(try device.retake() == 5)
    #expect(try device.take() == 6)
    #expect(bench.entry(6).order == 0x8_0000 + 101)
  }

  @Test func moreInFlightThanTheDriverWaitsForIsRefused() throws {
    let bench = try CrashBench(CrashCase(size: 8))
    _ = try bench.device()
    bench.ring.makeAvailable(0, 1)
    for head: UInt16 in 0..<3 { bench.setEntry(head) { $0.mark = 1 } }
    #expect(throws: QueueError.inflightTooMany(3, waiting: 2)) { try bench.device() }
  }

  /// A chain that the guest has broken in the meantime still has to be answered.
  @Test func brokenChainStaysInFlight() throws {
    let bench = try CrashBench(CrashCase(size: 8))
    _ = try bench.device()
    bench.ring.makeAvailable(3, 4)
    bench.setEntry(3) { $0.mark = 1 }
    bench.ring.describe(3, 0, 16, RingFixture.indirect)
    let device = try bench.device()
    #expect(throws: QueueError.indirectNotNegotiated(head: 3)) { try device.retake() }
    #expect(device.interrupted == 1 && bench.entry(3).mark == 1)
    #expect(device.position == QueuePosition(available: 1, used: 0))
  }

  enum Damage: CaseIterable {
    case lastOutOfRange, linkOutOfRange, loop, marks, distance
  }

  /// Contents that no device writes: nothing traps, nothing goes on forever, and whatever can be reported is reported right.
  @Test(arguments: Damage.allCases) func damagedRecordIsSurvived(_ damage: Damage) throws {
    let bench = try CrashBench(CrashCase(size: 8, start: 20))
    _ = try bench.device()
    bench.ring.makeAvailable(0, 1, 2, 3, 4, 5)
    for head: UInt16 in 0..<5 {
      bench.setEntry(head) {
        $0.mark = damage == .marks ? 0xFE : 1
        $0.order = UInt64(head)
        $0.link = head &+ 1
      }
    }
    bench.header.last = 4
    bench.header.used = 18
    bench.ring.store(UInt32(4), at: bench.ring.used + 4 + 8 * 3)
    var expected: [UInt16] = [0, 1, 2, 3]
    switch damage {
    case .lastOutOfRange:
      bench.header.last = 8
      expected.append(4)
    case .linkOutOfRange: bench.setEntry(4) { $0.link = 65535 }
    case .loop: bench.setEntry(4) { $0.link = 4 }
    case .marks: bench.setEntry(5) { $0.mark = 0x80 }
    case .distance:
      // More than the ring's size: as many as there are.
      bench.header.used = 30000
      bench.setEntry(4) { $0.link = 0 }
      for head: UInt16 in 0..<3 { bench.setEntry(head) { $0.link = head + 1 } }
      bench.setEntry(3) { $0.link = 4 }
      expected = []
    }
    let device = try bench.device()
    var heads: [UInt16] = []
    while let head = try device.retake() { heads.append(head) }
    #expect(heads == expected)
    #expect(bench.header.used == 20)
  }

  /// Random bytes are refused, or the ring works, and all its chains can be answered.
  @Test(arguments: 0..<8) func anyBytesAreRefusedOrSurvived(seed: Int) throws {
    var random = SplitMix(state: UInt64(seed))
    for _ in 0..<200 {
      let bench = try CrashBench(CrashCase(size: 16, start: 65520, seed: UInt64(seed)))
      _ = try bench.device()
      bench.makeAvailable(1 + random.next(below: 16))
      var bytes = bench.regionContents
      // A few bytes, half of them, or all; with a header that gets further than most.
      let share = [8, 128, 255][random.next(below: 3)]
      for index in bytes.indices where random.next(below: 256) < share { bytes[index] = UInt8(random.next(below: 256)) }
      bench.setRegion(bytes)
      if random.next(below: 4) > 0 {
        bench.header.version = 1
        bench.header.entries = 16
      }
      do {
        let device = try bench.device()
        while try device.retake() != nil {}
        while try device.take() != nil {}
        while device.inFlight > 0 {
          // The bytes keep changing.
          let index = 16 + random.next(below: bytes.count - 16)
          bytes = bench.regionContents
          bytes[index] = UInt8(random.next(below: 256))
          bench.setRegion(bytes)
          device.answer(random.next(below: 16))
          if random.next(below: 3) == 0 { device.publish() }
        }
        device.publish()
      } catch let error as QueueError {
        #expect(!error.description.isEmpty)
      }
    }
  }

  /// A ring without a record has nothing to retake.
  @Test func ordinaryRingHasNothingInterrupted() throws {
    let ring = try RingFixture(size: 4)
    let queue = try ring.queue()
    #expect(queue.interrupted == 0 && !SplitQueue.isRecorded && RecordedSplitQueue.isRecorded)
  }
}

/// The first 16 bytes of a region, without the features, which are 0.
struct Header: Equatable {
  var version: UInt16
  var entries: UInt16
  var last: UInt16
  var used: UInt16
}

struct Entry {
  var mark: UInt8
  var link: UInt16
  var order: UInt64
}

extension CrashBench {
  private func load<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value {
    unsafe regionContents.withUnsafeBytes { unsafe Value(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: type)) }
  }

  private func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    var bytes = regionContents
    unsafe bytes.withUnsafeMutableBytes { unsafe $0.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Value.self) }
    setRegion(bytes)
  }

  var header: Header {
    get {
      Header(
        version: load(UInt16.self, at: 8), entries: load(UInt16.self, at: 10), last: load(UInt16.self, at: 12),
        used: load(UInt16.self, at: 14))
    }
    set {
      store(newValue.version, at: 8)
      store(newValue.entries, at: 10)
      store(newValue.last, at: 12)
      store(newValue.used, at: 14)
    }
  }

  func entry(_ head: UInt16) -> Entry {
    let place = 16 + 16 * Int(head)
    return Entry(
      mark: load(UInt8.self, at: place), link: load(UInt16.self, at: place + 6), order: load(UInt64.self, at: place + 8))
  }

  func setEntry(_ head: UInt16, _ change: (inout Entry) -> Void) {
    var entry = entry(head)
    change(&entry)
    let place = 16 + 16 * Int(head)
    store(entry.mark, at: place)
    store(entry.link, at: place + 6)
    store(entry.order, at: place + 8)
  }
}
