/// The driver's half of a ring and the device's, which share no code, on the same memory: every chain arrives unchanged
/// and in order, every answer reaches the request that it belongs to, and a sleeping side is woken.
import Testing
import VirtioCore

@testable import GuestDriver

struct RingContractTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var format: RingFormat
    var size: UInt16
    var eventIndex: Bool
    var indirect: Bool
    /// The device answers in order, and one element may stand for many chains.
    var inOrder = false
    /// Each answer is seen as soon as it is pushed.
    var atPush = false

    var features: FeatureSet {
      var features: FeatureSet = [.version1]
      if format == .packed { features.insert(.packedRing) }
      if eventIndex { features.insert(.eventIndex) }
      if indirect { features.insert(.indirectDescriptors) }
      if inOrder { features.insert(.inOrder) }
      return features
    }

    var testDescription: String {
      "\(format), \(size) entries\(eventIndex ? ", EVENT_IDX" : "")\(indirect ? ", INDIRECT_DESC" : "")"
        + (inOrder ? ", IN_ORDER" : "") + (atPush ? ", published at once" : "")
    }

    static let all = [
      (.split, [1, 2, 8, 64]), (.packed, [1, 2, 3, 5, 8, 61]),
    ].flatMap { (format: RingFormat, sizes: [UInt16]) in
      sizes.flatMap { size in
        [false, true].flatMap { events in
          [(false, false), (true, false), (true, true)].flatMap { (indirect, inOrder) in
            (format == .packed ? [false, true] : [false]).map {
              Case(format: format, size: size, eventIndex: events, indirect: indirect, inOrder: inOrder, atPush: $0)
            }
          }
        }
      }
    }
  }

  @Test(arguments: Case.all) func halvesFit(_ one: Case) throws {
    switch one.format {
    case .split:
      var contract = try Contract<SplitQueue>(one)
      try contract.run()
    case .packed:
      var contract = try Contract<PackedQueue>(one)
      try contract.run()
    }
  }
}

/// Both halves, and what each still has to receive.
@safe
private struct Contract<Ring: Virtqueue & ~Copyable>: ~Copyable {
  static var chains: UInt32 { 4000 }

  let memory: DriverMemory
  let kick: OwnedDescriptor
  let size: Int
  let indirect: Bool
  let inOrder: Bool
  let atPush: Bool
  var driver: DriverQueue
  var device: Ring
  var random = SeededRandom(seed: 14)
  var added: UInt32 = 0
  var reaped: UInt32 = 0
  /// Chains that the driver has submitted, by token.
  var given: [UInt32: [ChainPiece]] = [:]
  /// Tokens that the device has not taken yet, and those that it has taken and not answered, with their chains.
  var waiting: [UInt32] = []
  var held: [UInt32] = []
  let chains: UnsafeMutablePointer<Chain>
  /// Answers that the driver has not reaped, in order.
  var answers: [(token: UInt32, length: UInt32)] = []
  var published = 0
  var deviceSleeps = false
  var driverSleeps = false
  let segments: UnsafeMutablePointer<MemorySegment>

  init(_ one: RingContractTests.Case) throws {
    let memory = try DriverMemory(size: 1 << 20)
    let ring = try RingMemory(size: one.size, format: one.format, shape: .separate, in: memory)
    let kick = try OwnedDescriptor.eventCounter()
    let setup = try QueueSetup(
      index: 0, ring: ring, lines: .eventCounters(kick: kick, call: try .eventCounter()), memory: memory,
      features: one.features, indirectTables: 4, indirectEntries: 8)
    let shared = try GuestMemory(
      memory.regions.map {
        GuestRegion(start: $0.start, size: UInt64($0.size), mapping: $0.mapping, offset: $0.offset)
      })
    let start = QueueStanding.start(one.format)
    device = try Ring(
      ring.layout.configuration, memory: shared, features: one.features,
      position: QueuePosition(available: start.available, used: start.used), record: nil)
    if one.atPush { device.publishAtPush() }
    driver = DriverQueue(setup)
    self.memory = memory
    self.kick = kick
    size = Int(one.size)
    indirect = one.indirect
    inOrder = one.inOrder
    atPush = one.atPush
    unsafe chains = .allocate(capacity: Int(one.size))
    unsafe segments = .allocate(capacity: 64)
  }

  deinit {
    unsafe chains.deallocate()
    unsafe segments.deallocate()
  }

  mutating func run() throws {
    var idle = 0
    while reaped < Self.chains {
      let before = reaped
      switch random.next() % 8 {
      case 0, 1: add()
      case 2: publish()
      case 3, 4: try take()
      case 5: answer()
      case 6: show()
      default: try reap()
      }
      idle = reaped == before ? idle + 1 : 0
      // No progress for that many steps: something is stuck, or lost.
      guard idle < 10_000 else {
        Issue.record("\(added) added, \(waiting.count) not taken, \(held.count) not answered, \(answers.count) not reaped")
        break
      }
    }
    while !held.isEmpty { answer() }
  }

  private mutating func add() {
    guard added < Self.chains else { return }
    let count = 1 + Int(random.next() % 5)
    let readable = Int(random.next() % UInt64(count))
    let pieces = (0..<count).map { place in
      ChainPiece(
        GuestAddress(0x1_0000 + UInt64(added % 64) * 4096 + UInt64(place) * 256), length: 1 + UInt32(random.next() % 200),
        deviceWrites: place >= readable)
    }
    let placement: ChainPlacement = indirect && random.chance(1, in: 2) ? .indirect() : .direct
    guard driver.add(pieces.span, placement: placement, token: added) != nil else { return }
    given[added] = pieces
    waiting.append(added)
    added += 1
  }

  private mutating func publish() {
    let unpublished = driver.added != driver.published
    let kicked = driver.publish()
    let kicks = EventCounter.drain(kick.rawValue)
    #expect(kicks == (kicked ? 1 : 0))
    guard unpublished, deviceSleeps else { return }
    #expect(kicked, "a sleeping device was not kicked")
    deviceSleeps = false
  }

  private mutating func take() throws {
    guard !deviceSleeps else { return }
    var shape = unsafe ChainShape(at: segments)
    guard let chain = unsafe try device.pop(into: segments, capacity: 64, shape: &shape) else {
      let isThere = device.enableKicks()
      #expect(!isThere, "there is a chain, and it was not taken")
      deviceSleeps = true
      return
    }
    let token = waiting.removeFirst()
    let pieces = given[token] ?? []
    let readable = unsafe shape.readableCount(from: segments)
    let count = readable + shape.writableCount
    let isWhole = readable == pieces.count { !$0.deviceWrites } && count == pieces.count && shape.defect == nil
    #expect(isWhole, "chain \(token)")
    for place in 0..<min(count, pieces.count) {
      let piece = pieces[place]
      let host = unsafe memory.host(piece.address, count: Int(piece.length))
      let isSame = unsafe segments[place].base == host && segments[place].count == Int(piece.length)
      #expect(isSame, "piece \(place) of chain \(token)")
    }
    unsafe (chains + held.count).initialize(to: chain)
    held.append(token)
  }

  /// Answers any chain that the device holds, or the first one.
  private mutating func answer() {
    guard !held.isEmpty else { return }
    guard !inOrder else { return answerFirst() }
    let place = Int(random.next() % UInt64(held.count))
    let chain = unsafe (chains + place).move()
    if place < held.count - 1 { unsafe (chains + place).moveInitialize(from: chains + held.count - 1, count: 1) }
    let token = held[place]
    held.swapAt(place, held.count - 1)
    held.removeLast()
    let length = answerLength(token)
    device.push(chain, written: length)
    answers.append((token, length))
    if atPush { published = answers.count }
  }

  private mutating func answerFirst() {
    let chain = unsafe chains.move()
    let token = held.removeFirst()
    unsafe chains.moveInitialize(from: chains + 1, count: held.count)
    let (length, writable) = (answerLength(token), writable(token))
    device.pushInOrder(chain, written: length, isWhole: length == writable)
    answers.append((token, length))
    if atPush { published = answers.count }
  }

  private func writable(_ token: UInt32) -> UInt32 {
    (given[token] ?? []).reduce(0) { $0 + ($1.deviceWrites ? $1.length : 0) }
  }

  /// The whole writable length, or part of it.
  private mutating func answerLength(_ token: UInt32) -> UInt32 {
    let writable = writable(token)
    return inOrder && random.chance(3, in: 4) ? writable : UInt32(random.next() % UInt64(writable + 1))
  }

  private mutating func show() {
    // What the driver has seen and reaped before it went to sleep is nothing new.
    let isNew = device.unpublished > 0 && (!atPush || published > 0)
    device.publish()
    published = answers.count
    let calls = device.needsCall()
    guard isNew, driverSleeps else { return }
    #expect(calls, "a sleeping driver was not called")
    driverSleeps = false
  }

  private mutating func reap() throws {
    guard !driverSleeps else { return }
    guard let used = try driver.reap() else {
      let isUnseen = published > 0
      #expect(!isUnseen, "an answer was published and not seen")
      guard random.chance(1, in: 2) else { return driver.disableCalls() }
      let sleeps = driver.enableCalls()
      #expect(sleeps)
      driverSleeps = true
      return
    }
    let answer = answers.removeFirst()
    published -= 1
    #expect(used.token == answer.token && used.length == answer.length)
    given[used.token] = nil
    reaped += 1
  }
}
