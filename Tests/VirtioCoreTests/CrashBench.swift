/// A split ring with an in-flight record that can be restored to any moment of its past, and a driver that remembers its
/// requests.
import Testing

@testable import VirtioCore

/// One test case.
struct CrashCase: Sendable, CustomTestStringConvertible {
  var size: Int
  /// Initial value of the indices.
  var start: UInt16 = 0
  var isIndirect = false
  var hasEventIndex = false
  /// The most answers published together.
  var batch = 4
  var steps = 24
  var seed: UInt64 = 1
  /// The driver relies on the order: chains are answered in order, and one element may stand for many.
  var isInOrder = false

  var testDescription: String {
    "\(size) entries from \(start), \(isIndirect ? "indirect, " : "")\(hasEventIndex ? "event index, " : "")batches of \(batch), "
      + (isInOrder ? "in order, " : "") + "seed \(seed)"
  }

  var features: FeatureSet {
    var features: FeatureSet = [.version1]
    if isIndirect { features.insert(.indirectDescriptors) }
    if hasEventIndex { features.insert(.eventIndex) }
    if isInOrder { features.insert(.inOrder) }
    return features
  }
}

/// Used by one thread only: observers are called on the thread that set them.
@safe
final class CrashBench: @unchecked Sendable {
  /// Everything that outlives a device, at one moment.
  struct Moment {
    var place: KillPoint
    var ring: [UInt8]
    var region: [UInt8]
    /// Heads that the driver has made available and not got back, in order.
    var outstanding: [UInt16]
    /// The driver's position in the used ring.
    var reaped: UInt16
  }

  let form: CrashCase
  let ring: RingFixture
  let record: InflightMemory
  private let region: UnsafeMutableRawPointer
  private let regionBytes: Int
  private(set) var outstanding: [UInt16] = []
  private(set) var reaped: UInt16
  private var free: [UInt16]
  private var random: SplitMix

  init(_ form: CrashCase) throws {
    self.form = form
    ring = try RingFixture(size: form.size)
    record = try InflightMemory.create(queueCount: 2, queueSize: UInt16(form.size))
    unsafe region = try #require(record.region(ofQueue: 1))
    regionBytes = Int(try InflightMemory.bytes(queueCount: 1, queueSize: UInt16(form.size)))
    reaped = form.start
    free = (0..<UInt16(form.size)).map { $0 }
    random = SplitMix(state: form.seed)
    ring.availableIndex = form.start
    ring.store(form.start, at: ring.used + 2)
    for head in 0..<form.size {
      let data = ring.buffers + UInt64(64 * head)
      if form.isIndirect {
        ring.describe(head, data + 16, 16, RingFixture.indirect)
        ring.describe(inTable: data + 16, 0, data, 1, RingFixture.write)
      } else {
        ring.describe(head, data, 1, RingFixture.write)
      }
    }
  }

  // MARK: Moments

  private var ringBytes: Int { Int(ring.buffers - RingFixture.base) }

  func moment(_ place: KillPoint) -> Moment {
    unsafe Moment(
      place: place, ring: Array(UnsafeRawBufferPointer(start: ring.mapping.base, count: ringBytes)),
      region: Array(UnsafeRawBufferPointer(start: region, count: regionBytes)), outstanding: outstanding, reaped: reaped)
  }

  func restore(_ moment: Moment) {
    unsafe moment.ring.withUnsafeBytes { unsafe ring.mapping.base.copyMemory(from: $0.baseAddress!, byteCount: ringBytes) }
    setRegion(moment.region)
    outstanding = moment.outstanding
    reaped = moment.reaped
    free = (0..<UInt16(form.size)).filter { !moment.outstanding.contains($0) }
  }

  func setRegion(_ bytes: [UInt8]) {
    unsafe bytes.withUnsafeBytes { unsafe region.copyMemory(from: $0.baseAddress!, byteCount: regionBytes) }
  }

  var regionContents: [UInt8] { unsafe Array(UnsafeRawBufferPointer(start: region, count: regionBytes)) }

  /// Runs the body, and records the state at every kill point.
  func watching(_ body: () throws -> Void) rethrows -> [Moment] {
    let moments = Moments()
    try KillPoint.$observer.withValue({ moments.list.append(self.moment($0)) }, operation: body)
    return moments.list
  }

  private final class Moments: @unchecked Sendable {
    var list: [Moment] = []
  }

  // MARK: The driver

  func makeAvailable(_ count: Int) {
    for _ in 0..<min(count, free.count) {
      let head = free.remove(at: random.next(below: free.count))
      outstanding.append(head)
      ring.makeAvailable(head)
    }
  }

  /// Takes all heads that the used ring shows.
  func reap() throws {
    for head in shown {
      let place = try #require(outstanding.firstIndex(of: head), "head \(head) came back, which was not submitted")
      outstanding.remove(at: place)
      free.append(head)
    }
    reaped = ring.usedIndex
  }

  /// Heads in the used ring that the driver has not seen.
  private var shown: [UInt16] {
    guard form.isInOrder else {
      return (0..<ring.usedIndex &- reaped).map { UInt16(truncatingIfNeeded: ring.usedElement(reaped &+ $0).id) }
    }
    // An element names the last of those that it stands for.
    var heads: [UInt16] = []
    while heads.count < Int(ring.usedIndex &- reaped) {
      let id = UInt16(truncatingIfNeeded: ring.usedElement(reaped &+ UInt16(heads.count)).id)
      guard let last = outstanding.dropFirst(heads.count).firstIndex(of: id) else { return heads + [id] }
      heads += outstanding[heads.count...last]
    }
    return heads
  }

  /// The heads that a device still has to answer, in the order in which they were submitted.
  func unanswered() throws -> [UInt16] {
    var heads = outstanding
    for head in shown {
      let place = try #require(heads.firstIndex(of: head), "head \(head) was answered twice")
      heads.remove(at: place)
    }
    return heads
  }

  // MARK: The device

  func device() throws -> CrashDevice { try CrashDevice(self) }

  /// A device and its driver run for a while: heads are submitted in groups, and answered in any order and in batches.
  func live() throws {
    let device = try device()
    for _ in 0..<form.steps {
      makeAvailable(1 + random.next(below: form.size))
      while random.next(below: 4) > 0, try device.take() != nil {}
      for _ in 0..<random.next(below: form.batch + 1) { device.answer(random.next(below: 1 << 16)) }
      if random.next(below: 3) > 0 { device.publish() }
      if random.next(below: 2) > 0 { try reap() }
    }
  }
}

/// The device's side, with the chains that it has taken.
final class CrashDevice {
  private final class Taken {
    var chain: Chain?
    init(_ chain: consuming Chain) { self.chain = consume chain }
    deinit { chain.take()?.abandon() }
  }

  private let bench: CrashBench
  private var queue: RecordedSplitQueue
  private var taken: [Taken] = []

  init(_ bench: CrashBench) throws {
    self.bench = bench
    queue = try RecordedSplitQueue(
      bench.ring.configuration, memory: bench.ring.memory, features: bench.form.features, position: QueuePosition(),
      record: InflightRecord(bench.record, queue: 1))
  }

  var interrupted: Int { queue.interrupted }
  var position: QueuePosition { queue.position }
  var inFlight: Int { taken.count }

  func take() throws -> UInt16? { unsafe try keep { unsafe try $0.pop(into: $1, capacity: 4, shape: &$2) } }
  func retake() throws -> UInt16? { unsafe try keep { unsafe try $0.retake(into: $1, capacity: 4, shape: &$2) } }

  private func keep(
    _ verb: (inout RecordedSplitQueue, UnsafeMutablePointer<MemorySegment>, inout ChainShape) throws -> Chain?
  ) throws -> UInt16? {
    let room = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 4)
    defer { unsafe room.deallocate() }
    var shape = unsafe ChainShape(at: room)
    guard let chain = unsafe try verb(&queue, room, &shape) else { return nil }
    let head = chain.head
    taken.append(Taken(chain))
    return head
  }

  /// Answers one of the taken chains, if there is one.
  func answer(_ choice: Int) {
    guard !taken.isEmpty else { return }
    let one = taken.remove(at: bench.form.isInOrder ? 0 : choice % taken.count)
    guard let chain = one.chain.take() else { return }
    // Occasionally one that was not written whole, which ends its batch.
    if bench.form.isInOrder { return queue.pushInOrder(chain, written: 1, isWhole: choice % 5 > 0) }
    queue.push(chain, written: 1)
  }

  func publish() {
    queue.publish()
    _ = queue.needsCall()
    _ = queue.enableKicks()
  }
}

/// Random numbers that are the same on every machine.
struct SplitMix: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var word = state
    word = (word ^ (word >> 30)) &* 0xBF58_476D_1CE4_E5B9
    word = (word ^ (word >> 27)) &* 0x94D0_49BB_1331_11EB
    return word ^ (word >> 31)
  }

  mutating func next(below limit: Int) -> Int { Int(next() % UInt64(limit)) }
}
