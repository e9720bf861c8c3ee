/// A packed ring with an in-flight record: what it records, and that the successor of a device that ended between any
/// two stores answers every chain once, in the driver's order.
import Testing

@testable import VirtioCore

/// Used by one thread only: observers are called on the thread that set them.
@safe
final class PackedCrashBench: @unchecked Sendable {
  struct Form: Sendable, CustomTestStringConvertible {
    var size: Int
    var slot = 0
    var wrap = true
    var isIndirect = false
    var batch = 4
    var steps = 20
    var seed: UInt64 = 1

    var testDescription: String {
      "\(size) slots from \(slot) \(wrap), \(isIndirect ? "indirect, " : "")batches of \(batch), seed \(seed)"
    }
  }

  /// Everything that outlives a device, at one moment.
  struct Moment {
    var place: KillPoint
    var ring: PackedFixture.Moment
    var region: [UInt8]
    var outstanding: [UInt16]
  }

  let form: Form
  let ring: PackedFixture
  let record: InflightMemory
  private let region: UnsafeMutableRawPointer
  private let regionBytes: Int
  /// Buffer ids that the driver has not got back, in the order in which it submitted them.
  private(set) var outstanding: [UInt16] = []
  /// The buffers of each id; no id is used twice.
  private var lists: [UInt16: [PackedFixture.Buffer]] = [:]
  private var nextID: UInt16 = 0xff00
  private var random: SplitMix

  init(_ form: Form) throws {
    self.form = form
    ring = try PackedFixture(size: form.size, at: (form.slot, form.wrap))
    record = try InflightMemory.create(queueCount: 2, queueSize: UInt16(form.size), isPacked: true)
    unsafe region = try #require(record.region(ofQueue: 1))
    regionBytes = Int(try InflightMemory.bytes(queueCount: 1, queueSize: UInt16(form.size), isPacked: true))
    random = SplitMix(state: form.seed)
  }

  var regionContents: [UInt8] {
    get { unsafe Array(UnsafeRawBufferPointer(start: region, count: regionBytes)) }
    set { unsafe newValue.withUnsafeBytes { unsafe region.copyMemory(from: $0.baseAddress!, byteCount: regionBytes) } }
  }

  func word(_ offset: Int, _ bytes: Int = 2) -> Int {
    regionContents[offset..<offset + bytes].reversed().reduce(0) { $0 << 8 | Int($1) }
  }

  func moment(_ place: KillPoint) -> Moment {
    Moment(place: place, ring: ring.moment, region: regionContents, outstanding: outstanding)
  }

  func restore(_ moment: Moment) {
    ring.restore(moment.ring)
    regionContents = moment.region
    outstanding = moment.outstanding
  }

  private final class Moments: @unchecked Sendable {
    var list: [Moment] = []
  }

  #if DEBUG
  func watching(_ body: () throws -> Void) rethrows -> [Moment] {
    let moments = Moments()
    try KillPoint.$observer.withValue({ moments.list.append(self.moment($0)) }, operation: body)
    return moments.list
  }
  #endif

  // MARK: The driver

  private var freeSlots: Int { form.size - outstanding.reduce(0) { $0 + (ring.spans[$1] ?? 0) } }

  func makeAvailable(_ count: Int) {
    for _ in 0..<count where freeSlots > 0 {
      nextID &+= 1
      let place = ring.buffers + UInt64(nextID) * 16
      let length = form.isIndirect ? 1 : 1 + random.next(below: min(3, freeSlots))
      let list = (0..<length).map {
        PackedFixture.Buffer(address: place + UInt64($0), length: 1, flags: $0 == length - 1 ? PackedFixture.write : 0)
      }
      lists[nextID] = list
      outstanding.append(nextID)
      if form.isIndirect {
        ring.describe(inTable: ring.buffers + UInt64(1 << 21) + UInt64(nextID) * 16, 0, list[0])
        ring.makeAvailable(
          nextID,
          [.init(address: ring.buffers + UInt64(1 << 21) + UInt64(nextID) * 16, length: 16, flags: PackedFixture.indirect)])
      } else {
        ring.makeAvailable(nextID, list)
      }
    }
  }

  func reap() throws {
    while let used = try ring.reap() {
      let place = try #require(outstanding.firstIndex(of: used.id), "\(used.id) came back, which was not submitted")
      outstanding.remove(at: place)
    }
  }

  /// The ids that a device still has to answer, in the order in which they were submitted.
  func unanswered() throws -> [UInt16] {
    let now = moment(.publishOver)
    defer { restore(now) }
    try reap()
    return outstanding
  }

  // MARK: The device

  final class Device {
    private let bench: PackedCrashBench
    private var queue: RecordedPackedQueue
    private let held = PackedFixture.Held()
    private(set) var taken: [UInt16] = []

    init(_ bench: PackedCrashBench) throws {
      self.bench = bench
      let (size, ring) = (bench.form.size, bench.ring)
      #expect(ring.size == size)
      let fresh = PackedPosition(slot: bench.form.slot, wrap: bench.form.wrap)
      queue = try RecordedPackedQueue(
        ring.configuration, memory: ring.memory, features: [.packedRing, .indirectDescriptors],
        position: QueuePosition(available: fresh, used: fresh), record: InflightRecord(bench.record, queue: 1))
    }

    var interrupted: Int { queue.interrupted }
    var position: QueuePosition { queue.position }

    func take(retakes: Bool = false) throws -> UInt16? {
      guard let popped = try bench.ring.take(&queue, held, retakes: retakes) else { return nil }
      let list = try #require(bench.lists[popped.head])
      try #require(popped.pieces == list.map { .init(address: $0.address, count: 1) }, "\(popped.head)")
      taken.append(popped.head)
      return popped.head
    }

    func answer(_ choice: Int) {
      guard !taken.isEmpty else { return }
      bench.ring.answer(&queue, held, taken.remove(at: choice % taken.count), written: 1)
    }

    func publish() {
      queue.publish()
      _ = queue.needsCall()
      _ = queue.enableKicks()
    }
  }

  func device() throws -> Device { try Device(self) }

  func live() throws {
    let device = try device()
    while try device.take(retakes: true) != nil {}
    for _ in 0..<form.steps {
      makeAvailable(1 + random.next(below: form.size))
      while random.next(below: 4) > 0, try device.take() != nil {}
      for _ in 0..<random.next(below: form.batch + 1) { device.answer(random.next(below: 1 << 16)) }
      if random.next(below: 3) > 0 { device.publish() }
      if random.next(below: 2) > 0 { try reap() }
    }
  }
}

@Suite struct PackedRecordTests {
  /// The record after each step of two chains, byte by byte in the layout of vhost-user.
  @Test func recordIsInTheStandardLayout() throws {
    let bench = try PackedCrashBench(.init(size: 4, slot: 3))
    let device = try bench.device()
    func header() -> [Int] { [8, 10, 12, 14, 16, 18].map { bench.word($0) } + [bench.word(20, 1), bench.word(21, 1)] }
    #expect(header() == [1, 4, 0, 0, 3, 3, 1, 1])
    for entry in 0..<4 { #expect(bench.word(32 + 32 * entry + 2) == entry + 1, "the free list") }
    let place = bench.ring.buffers + 0xff01 * 16
    bench.makeAvailable(1)
    let span = try #require(bench.ring.spans[0xff01])
    #expect(try device.take() == 0xff01)
    #expect(header() == [1, 4, span, span, 3, 3, 1, 1])
    #expect(bench.word(32, 1) == 1 && bench.word(32 + 6) == span && bench.word(32 + 4) == span - 1)
    #expect(bench.word(32 + 24, 8) == Int(place) && bench.word(32 + 20, 4) == 1 && bench.word(32 + 8, 8) == 0)
    let last = 32 * span
    #expect(bench.word(last + 16) == 0xff01 && bench.word(last + 18) & 2 == 2)
    device.answer(0)
    #expect(bench.word(32, 1) == 1, "nothing is freed before it is published")
    device.publish()
    let next = (3 + span) % 4
    #expect(bench.word(32, 1) == 0 && bench.word(last + 2) == span)
    #expect(header() == [1, 4, 0, 0, next, next, 0, 0])
    #expect(try bench.unanswered().isEmpty)
  }

  @Test func recordsOfTheOtherFormatAreRefused() throws {
    let bench = try PackedCrashBench(.init(size: 4))
    let split = try InflightMemory.create(queueCount: 1, queueSize: 4)
    let start = QueuePosition.start(.packedRing)
    func packed(_ record: InflightRecord?) throws(QueueError) {
      _ = try RecordedPackedQueue(
        bench.ring.configuration, memory: bench.ring.memory, features: .packedRing, position: start, record: record)
    }
    #expect(throws: QueueError.inflightFormat) { try packed(InflightRecord(split, queue: 0)) }
    #expect(throws: QueueError.inflightMissing) { try packed(nil) }
    #expect(throws: QueueError.inflightMissing) { try packed(InflightRecord(bench.record, queue: 2)) }
    let small = try InflightMemory.create(queueCount: 1, queueSize: 3, isPacked: true)
    #expect(throws: QueueError.inflightSize(recorded: 3, size: 4)) { try packed(InflightRecord(small, queue: 0)) }
    let fixture = try RingFixture(size: 4)
    #expect(throws: QueueError.inflightFormat) {
      _ = try RecordedSplitQueue(
        fixture.configuration, memory: fixture.memory, features: [], position: QueuePosition(),
        record: InflightRecord(bench.record, queue: 0))
    }
    #expect(throws: QueueError.otherFormat) {
      _ = try SplitQueue(fixture.configuration, memory: fixture.memory, features: .packedRing, position: start)
    }
    #expect(throws: QueueError.otherFormat) {
      _ = try PackedQueue(bench.ring.configuration, memory: bench.ring.memory, features: [], position: start)
    }
  }

  @Test func regionsAreAsLargeAsElsewhere() throws {
    #expect(try InflightMemory.bytes(queueCount: 3, queueSize: 128, isPacked: true) == 3 * (32 * 128 + 64))
    #expect(try InflightMemory.bytes(queueCount: 1, queueSize: 3, isPacked: true) == 128)
  }

  /// Random bytes are refused, or the ring works, and all its chains can be answered.
  @Test(arguments: 0..<8) func anyBytesAreRefusedOrSurvived(seed: Int) throws {
    var random = SplitMix(state: UInt64(seed))
    for _ in 0..<150 {
      let bench = try PackedCrashBench(.init(size: 1 + random.next(below: 9), seed: UInt64(seed)))
      let first = try bench.device()
      bench.makeAvailable(1 + random.next(below: 4))
      _ = try first.take()
      var bytes = bench.regionContents
      let share = [8, 128, 255][random.next(below: 3)]
      for index in bytes.indices where random.next(below: 256) < share { bytes[index] = UInt8(random.next(below: 256)) }
      if random.next(below: 4) > 0 { bytes.replaceSubrange(8..<12, with: [1, 0, UInt8(bench.form.size), 0]) }
      if random.next(below: 2) > 0 { for index in 16..<22 { bytes[index] &= 1 } }
      bench.regionContents = bytes
      var queue: RecordedPackedQueue
      do throws(QueueError) {
        queue = try RecordedPackedQueue(
          bench.ring.configuration, memory: bench.ring.memory, features: .packedRing, position: .start(.packedRing),
          record: InflightRecord(bench.record, queue: 1))
      } catch {
        #expect(!error.description.isEmpty)
        continue
      }
      let held = PackedFixture.Held()
      var ids: [UInt16] = []
      do throws(QueueError) {
        while let popped = try bench.ring.take(&queue, held, retakes: true) { ids.append(popped.head) }
        while let popped = try bench.ring.take(&queue, held) { ids.append(popped.head) }
      } catch { #expect(!error.description.isEmpty) }
      #expect(ids.count <= bench.form.size)
      for id in ids { bench.ring.answer(&queue, held, id, written: 1) }
      queue.publish()
    }
  }
}

#if DEBUG
@Suite struct PackedCrashTests {
  typealias Form = PackedCrashBench.Form

  static let forms: [Form] = [
    Form(size: 1, batch: 1), Form(size: 2, slot: 1, batch: 2, seed: 2), Form(size: 3, slot: 2, wrap: false, seed: 3),
    Form(size: 5, batch: 8, seed: 4), Form(size: 8, slot: 6, isIndirect: true, batch: 3, seed: 5),
    Form(size: 16, slot: 15, wrap: false, batch: 16, seed: 6),
  ]

  @Test(arguments: forms) func everyMomentIsRecovered(_ form: Form) throws {
    let bench = try PackedCrashBench(form)
    let moments = try bench.watching { try bench.live() }
    try #require(moments.count > 50)
    for moment in moments {
      bench.restore(moment)
      try Self.recover(bench, "after \(moment.place)")
    }
  }

  /// The successor ends at any point, too, even after it has begun to answer.
  @Test(arguments: forms) func everyMomentOfEveryRecoveryIsRecovered(_ form: Form) throws {
    var form = form
    form.steps = 6
    let bench = try PackedCrashBench(form)
    let moments = try bench.watching { try bench.live() }
    for (index, moment) in moments.enumerated() where form.size < 8 || index % 5 == 0 {
      bench.restore(moment)
      let again = try bench.watching { try Self.recover(bench, "after \(moment.place)") }
      for (number, second) in again.enumerated() where number < 30 || number % 7 == 0 {
        bench.restore(second)
        try Self.recover(bench, "after \(moment.place), then \(second.place)")
      }
    }
  }

  /// Many devices, one after the other: each ends somewhere, and begins with what the previous one left.
  @Test func longChainOfCrashesLosesNothing() throws {
    let bench = try PackedCrashBench(Form(size: 11, slot: 7, batch: 5, steps: 4, seed: 8))
    var random = SplitMix(state: 9)
    for _ in 0..<200 {
      let moments = try bench.watching { try bench.live() }
      guard let moment = moments.randomElement(using: &random) else { continue }
      bench.restore(moment)
    }
    try Self.recover(bench, "at the end")
  }

  /// The tests above pass every kill point of the ring.
  @Test func everyPlaceIsPassed() throws {
    let bench = try PackedCrashBench(Form(size: 8, batch: 3, seed: 10))
    let moments = try bench.watching { try bench.live() }
    var places = Set(moments.map(\.place))
    let shown = try #require(moments.first { $0.place == .publishShown })
    bench.restore(shown)
    places.formUnion(try bench.watching { try Self.recover(bench, "") }.map(\.place))
    for moment in moments where moment.place == .takeMarked || moment.place == .publishFreed {
      bench.restore(moment)
      places.formUnion(try bench.watching { try Self.recover(bench, "") }.map(\.place))
    }
    #expect(Set(KillPoint.allCases).subtracting(places) == [.answerPushed, .callDue, .callDone], "those belong to the worker")
  }

  /// Starts with the present state, and answers everything.
  static func recover(_ bench: PackedCrashBench, _ note: String) throws {
    let expected = try bench.unanswered()
    let device = try bench.device()
    let interrupted = device.interrupted
    var order: [UInt16] = []
    while let id = try device.take(retakes: true) { order.append(id) }
    try #require(order.count == interrupted, "\(note)")
    while let id = try device.take() { order.append(id) }
    try #require(order == expected, "\(note)")
    // Last in, first out, in batches of three.
    while !device.taken.isEmpty {
      for _ in 0..<3 { device.answer(device.taken.count - 1) }
      device.publish()
      // A driver may look at any time, and must not see more answers than these.
      try #require(try bench.unanswered() == expected.filter(device.taken.contains), "\(note)")
    }
    try #require(try bench.unanswered().isEmpty, "\(note)")
    try #require(device.position.available == device.position.used, "\(note)")
    let region = bench.regionContents
    try #require((0..<bench.form.size).allSatisfy { region[32 + 32 * $0] == 0 }, "\(note): nothing is in flight any more")
    // Its position is the driver's.
    try bench.reap()
    bench.makeAvailable(1)
    try #require(try device.take() == bench.outstanding.first, "\(note)")
  }
}
#endif
