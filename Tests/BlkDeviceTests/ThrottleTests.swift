/// Limits: token arithmetic, with a clock that the test controls; and a disk that keeps its limits, without looking at any
/// clock.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct TokenBucketTests {
  private static let second: UInt64 = 1_000_000_000

  struct Case: CustomTestStringConvertible, Sendable {
    var note: String
    var limit: RateLimit
    var isFull = true
    /// What is taken, and when, in nanoseconds after 100 s.
    var taken: [(at: UInt64, tokens: UInt64)]
    /// The earliest time at which the next request may go after that, in the same unit.
    var ready: UInt64
    var testDescription: String { note }
  }

  static let cases = [
    Case(note: "a burst goes at once", limit: RateLimit(perSecond: 100, burst: 10), taken: [(0, 9)], ready: 0),
    Case(note: "the last of it, too", limit: RateLimit(perSecond: 100, burst: 10), taken: [(0, 10)], ready: 0),
    Case(note: "an excess becomes a debt", limit: RateLimit(perSecond: 100, burst: 10), taken: [(0, 60)], ready: second / 2),
    Case(
      note: "an empty one has nothing", limit: RateLimit(perSecond: 100, burst: 10), isFull: false, taken: [(0, 1)],
      ready: second / 100),
    Case(
      note: "nothing is saved beyond the burst", limit: RateLimit(perSecond: 100, burst: 10),
      taken: [(0, 10), (50 * second, 20)], ready: 50 * second + second / 10),
    Case(note: "a tenth of a second by default", limit: RateLimit(perSecond: 1000), taken: [(0, 200)], ready: second / 10),
    Case(note: "one at least", limit: RateLimit(perSecond: 1), taken: [(0, 2)], ready: second),
    Case(note: "a rate of 0 counts as 1", limit: RateLimit(perSecond: 0, burst: 0), taken: [(0, 3)], ready: 2 * second),
    Case(
      note: "debts add up", limit: RateLimit(perSecond: 1000, burst: 1), isFull: false, taken: [(0, 500), (0, 500)],
      ready: second),
    Case(
      note: "large numbers stay large", limit: RateLimit(perSecond: 1, burst: 1), taken: [(0, .max), (0, .max)],
      ready: .max - 100 * second),
    Case(
      note: "high rates are exact", limit: RateLimit(perSecond: 40_000_000_000, burst: 1), isFull: false,
      taken: [(0, 4_000_000_000)], ready: second / 10),
  ]

  @Test(arguments: cases) func paysItsDebts(_ test: Case) {
    let start = 100 * Self.second
    var bucket = TokenBucket(test.limit, now: start, isFull: test.isFull)
    for (time, tokens) in test.taken { bucket.take(tokens, now: start + time) }
    #expect(max(bucket.ready, start) - start == test.ready)
  }
}

@Suite struct DiskThrottleTests {
  private static let start: UInt64 = 1 << 40

  private static func limits(_ change: (inout RateLimits) -> Void) -> RateLimits {
    var limits = RateLimits()
    change(&limits)
    return limits
  }

  private static func book(_ throttle: DiskThrottle, _ kind: ThrottledKind, _ sizes: [UInt64], now: UInt64) -> Booking {
    unsafe sizes.withUnsafeBufferPointer { unsafe throttle.book(kind, sizes: $0, now: now) }
  }

  struct Rate: CustomTestStringConvertible, Sendable {
    var note: String
    var limits: RateLimits
    var size: UInt64
    /// Expected number of requests of all kinds in ten seconds.
    var expected: Double
    var testDescription: String { note }
  }

  static let rates = [
    Rate(note: "100 requests", limits: limits { $0.totalIOPS = RateLimit(perSecond: 100) }, size: 4096, expected: 1000),
    Rate(note: "5,000 requests", limits: limits { $0.totalIOPS = RateLimit(perSecond: 5000) }, size: 4096, expected: 50_000),
    Rate(
      note: "300,000 requests", limits: limits { $0.totalIOPS = RateLimit(perSecond: 300_000) }, size: 512, expected: 3_000_000),
    Rate(note: "1 MiB", limits: limits { $0.totalBytes = RateLimit(perSecond: 1 << 20) }, size: 4096, expected: 2560),
    Rate(
      note: "1 GiB in large pieces", limits: limits { $0.totalBytes = RateLimit(perSecond: 1 << 30) }, size: 1 << 20,
      expected: 10240),
    Rate(
      note: "the lower of two",
      limits: limits {
        $0.totalIOPS = RateLimit(perSecond: 1000)
        $0.totalBytes = RateLimit(perSecond: 1 << 20)
      }, size: 4096, expected: 2560),
    Rate(
      note: "reads and writes apart",
      limits: limits {
        $0.readIOPS = RateLimit(perSecond: 700)
        $0.writeIOPS = RateLimit(perSecond: 300)
      }, size: 4096, expected: 10_000),
  ]

  /// Four queues of two kinds that always have more requests; each sleeps until it may go, and wakes a little late.
  @Test(arguments: rates) func tenSecondsOfFourQueues(_ test: Rate) {
    let throttle = DiskThrottle(RateLimits(), now: Self.start)
    throttle.set(test.limits, now: Self.start)
    let sizes = [UInt64](repeating: test.size, count: 64)
    let end = Self.start + 10_000_000_000
    var random = SeededRandom(seed: 3)
    var counts = [0, 0, 0, 0]
    var bookings = (0..<4).map { queue in Self.book(throttle, queue % 2 == 0 ? .read : .write, sizes, now: Self.start) }
    var wakes = bookings.map(\.due)
    var wakeUps = 0
    while let next = wakes.indices.min(by: { wakes[$0] < wakes[$1] }), wakes[next] < end {
      let now = max(wakes[next], Self.start)
      wakeUps += 1
      while bookings[next].due <= now {
        counts[next] += bookings[next].count
        bookings[next] = Self.book(throttle, next % 2 == 0 ? .read : .write, sizes, now: now)
      }
      // Timers of some kinds are up to a millisecond late.
      wakes[next] = bookings[next].due + random.next() % 1_000_000
    }
    let total = Double(counts.reduce(0, +))
    #expect(abs(total / test.expected - 1) < 0.02, "\(counts)")
    for kind in 0..<2 {
      let (one, other) = (Double(counts[kind]), Double(counts[kind + 2]))
      #expect(abs(one - other) / max(one, other) < 0.03, "\(counts)")
    }
    // Wakes are bounded: one per booking interval for each kind, or one whenever a queue has done all it had.
    let bound = min(Int(test.expected), max(2 * 10_000 / 5, Int(test.expected) / sizes.count))
    #expect(wakeUps <= bound + bound / 10 + 100, "\(wakeUps)")
  }

  @Test func aDebtOfOneKindHoldsUpNoOther() {
    let throttle = DiskThrottle(
      Self.limits {
        $0.writeBytes = RateLimit(perSecond: 1)
        $0.totalIOPS = RateLimit(perSecond: 1000)
      }, now: Self.start)
    #expect(Self.book(throttle, .write, [4096], now: Self.start).due <= Self.start)
    #expect(Self.book(throttle, .write, [4096], now: Self.start).due > Self.start + 4_000_000_000_000)
    #expect(Self.book(throttle, .read, [1 << 30], now: Self.start).due <= Self.start)
  }

  @Test func otherLimitsForgetDebtsAndSavings() {
    let throttle = DiskThrottle(Self.limits { $0.totalBytes = RateLimit(perSecond: 1) }, now: Self.start)
    throttle.charge(.write, bytes: 1 << 30, now: Self.start)
    #expect(Self.book(throttle, .read, [512], now: Self.start).due > Self.start + 1_000_000_000)
    throttle.set(Self.limits { $0.totalIOPS = RateLimit(perSecond: 1000, burst: 1000) }, now: Self.start)
    #expect(throttle.isLimited)
    let booking = Self.book(throttle, .read, [UInt64](repeating: 512, count: 100), now: Self.start)
    #expect(booking == Booking(due: Self.start, count: 5))
    throttle.set(RateLimits(), now: Self.start)
    #expect(!throttle.isLimited)
    #expect(Self.book(throttle, .read, [512, 512], now: Self.start) == Booking(due: 0, count: 2))
  }
}

/// With one byte a second, a debt of 4096 bytes takes over an hour: nothing here depends on how fast the machine is.
@Suite struct ThrottleTests {
  private static let oneByte = RateLimit(perSecond: 1, burst: 1)
  private static let slowWrites: RateLimits = {
    var limits = RateLimits()
    limits.writeBytes = oneByte
    return limits
  }()
  private static let slow: RateLimits = {
    var limits = RateLimits()
    limits.totalBytes = oneByte
    return limits
  }()

  private static func rig(_ engine: EngineKind, _ limits: RateLimits, queues: Int = 1, threads: Int? = nil) throws -> Rig {
    var options = RigOptions(engine: engine)
    options.device.limits = limits
    options.device.queueCount = queues
    options.device.threads = threads
    return try Rig(options)
  }

  /// Submits without waiting.
  private static func submit(_ queue: BlockQueue, _ request: BlockRequest) throws {
    _ = try #require(try queue.submit(request))
    queue.publish()
  }

  /// Waits for that many answers. - Returns: their statuses.
  private static func answers(_ queue: BlockQueue, _ count: Int) throws -> [BlockStatusCode] {
    var found: [BlockStatusCode] = []
    try waitUntil("\(count) are answered") {
      while let outcome = try queue.reap() { found.append(outcome.status) }
      return found.count >= count
    }
    return found
  }

  @Test(arguments: WorkerTests.engines, [1, 2]) func whatIsTooMuchWaitsAlone(engine: EngineKind, threads: Int) throws {
    let rig = try Self.rig(engine, Self.slowWrites, queues: 2, threads: threads)
    let queue = rig.client.queues[0]
    // A bucket without debt lets any request go.
    try rig.expect(.write(sector: 0, pattern(4096, seed: 1)))
    try Self.submit(queue, .write(sector: 0, pattern(4096, seed: 2)))
    try Self.submit(queue, .writeZeroes([BlockRange(sector: 8, sectors: 8)]))
    try Self.submit(queue, .discard([BlockRange(sector: 8, sectors: 8)]))
    try waitUntil("three wait") { rig.device.counters.throttled == 3 }
    // Requests without a limit overtake it, on this queue and on the other one.
    for number in 0..<2 {
      let queue = rig.client.queues[number]
      for request in [BlockRequest(type: .flush), .read(sector: 0, bytes: 4096), .read(sector: 1 << 40, bytes: 512)] {
        _ = try #require(try queue.submit(request))
      }
      queue.publish()
      var statuses = try Self.answers(queue, 3).map(\.rawValue)
      statuses.sort()
      #expect(statuses == [0, 0, 1])
    }
    #expect(try queue.reap() == nil)
    if engine != .null { #expect(try firstDifference(rig.contents(at: 0, count: 4096), pattern(4096, seed: 1)) == nil) }
    rig.device.setLimits(RateLimits())
    #expect(try Self.answers(queue, 3) == [.ok, .ok, .ok])
    if engine != .null { #expect(try firstDifference(rig.contents(at: 0, count: 4096), pattern(4096, seed: 2)) == nil) }
    #expect(rig.device.limits.isEmpty)
    try rig.expect(.write(sector: 16, pattern(4096)))
    #expect(rig.device.counters.throttled == 3 && rig.device.counters.throttledNanoseconds > 0)
  }

  @Test func nothingLooksWhileItWaits() throws {
    let rig = try Self.rig(.uring, Self.slow)
    try rig.expect(.read(sector: 0, bytes: 4096))
    for _ in 0..<8 { _ = try #require(try rig.client.queues[0].submit(.read(sector: 0, bytes: 4096))) }
    rig.client.queues[0].publish()
    try waitUntil("all wait") { rig.device.counters.throttled == 8 }
    // The thread may be about to sleep.
    var turns = rig.device.counters.turns
    try waitUntil("nothing happens for a while") {
      let before = turns
      usleep(50_000)
      turns = rig.device.counters.turns
      return turns == before
    }
    #expect(rig.device.metrics().depths == [8])
    rig.device.setLimits(RateLimits())
    #expect(try Self.answers(rig.client.queues[0], 8).allSatisfy { $0 == .ok })
  }

  /// Limits of a running disk are set, changed, and removed.
  @Test(arguments: [EngineKind.uring, .mapped, .sync]) func limitsChangeWhileItRuns(engine: EngineKind) throws {
    let rig = try Self.rig(engine, RateLimits())
    let queue = rig.client.queues[0]
    for round in 0..<3 {
      for _ in 0..<20 { try rig.expect(.write(sector: 0, pattern(4096))) }
      rig.device.setLimits(Self.slow)
      // The change may reach the worker after some more requests.
      let before = rig.device.counters.throttled
      var given = 0
      try waitUntil("a request waits") {
        if rig.device.counters.throttled > before { return true }
        if given < 100, try queue.submit(.read(sector: 0, bytes: 4096)) != nil {
          queue.publish()
          given += 1
        }
        return false
      }
      // Reads are no longer limited.
      rig.device.setLimits(Self.slowWrites)
      #expect(try Self.answers(queue, given).allSatisfy { $0 == .ok }, "\(round)")
      rig.device.setLimits(RateLimits())
    }
  }

  /// A request that waits for a limit is not in flight: a paused disk is idle with it, and does not start it.
  @Test(arguments: [false, true]) func aPauseLeavesWhatWaits(isInOrder: Bool) throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.limits = Self.slowWrites
    let device = try BlockDevice(
      image: ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off)), options: options)
    let hand = try HandQueue(device, 0, SharedMemory(), publishesInOrder: isInOrder)
    try hand.start()
    for _ in 0..<3 { try hand.submit(.write(sector: 0, pattern(4096))) }
    try hand.submit(.read(sector: 0, bytes: 512))
    hand.queue.publish()
    try waitUntil("two wait") { device.counters.throttled == 2 }
    device.pause()
    try waitUntil("it is idle") {
      _ = device.takeEvents()
      return device.isAtRest
    }
    device.setLimits(RateLimits())
    usleep(20_000)
    // Requests that order does not hold up are answered: the first write, and the read.
    #expect(hand.usedIndex == (isInOrder ? 1 : 2))
    device.resume()
    try waitUntil("all are answered") { hand.usedIndex == 4 }
    _ = hand.stop()
  }

  /// The disk becomes smaller in the meantime: a request beyond the new end is not done when its time comes, and the file stays
  /// short.
  @Test(arguments: WorkerTests.engines) func whatWaitsIsLookedAtAgain(engine: EngineKind) throws {
    var options = RigOptions(engine: engine)
    options.device.limits = Self.slow
    let rig = try Rig(options)
    let queue = rig.client.queues[0]
    try rig.expect(.write(sector: 0, pattern(4096)))
    let half: UInt64 = 2 << 20
    let requests: [BlockRequest] = [
      .write(sector: half / 512, pattern(4096)), .read(sector: half / 512 - 1, bytes: 1024),
      .writeZeroes([BlockRange(sector: 0, sectors: 8), BlockRange(sector: half / 512, sectors: 8)]),
    ]
    for request in requests { try Self.submit(queue, request) }
    try waitUntil("they wait") { rig.device.counters.throttled == 3 }
    try rig.device.image.setLength(half)
    rig.device.resize(to: half)
    rig.device.setLimits(RateLimits())
    #expect(try Self.answers(queue, 3) == [.ioError, .ioError, .ioError])
    #expect(rig.device.counters.refusals == 3)
    #expect(try rig.device.image.measure() == half)
    try rig.expect(.write(sector: half / 512 - 8, pattern(4096)))
  }

  /// A stop does all requests that were taken, at once, and charges them; with every way of publishing answers.
  @Test(arguments: [EngineKind.uring, .mapped, .sync, .threads], [(false, false), (true, false), (false, true), (true, true)])
  func aStopWaitsForNoTokens(engine: EngineKind, kind: (isInOrder: Bool, isRecorded: Bool)) throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 1 << 20)
    var options = BlockDeviceOptions()
    options.engine = engine
    options.limits = Self.slowWrites
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: path, direct: .off)), options: options)
    let hand = try HandQueue(device, 0, SharedMemory(), size: 64, publishesInOrder: kind.isInOrder)
    for number in 0..<10 { try hand.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
    hand.queue.publish()
    let record = kind.isRecorded ? try RecordFile(queues: 1, size: 64).memory : nil
    try hand.start(record: record)
    try waitUntil("all but one wait") { device.counters.throttled == 9 }
    #expect(hand.stop() == QueuePosition(available: 10, used: 10))
    var answered = 0
    while let outcome = try hand.queue.reap() {
      #expect(outcome.status == .ok)
      answered += 1
    }
    #expect(answered == 10)
    let bytes = (0..<10).flatMap { pattern(512, seed: $0) }
    #expect(try firstDifference(scratch.contents(path, at: 0, count: bytes.count), bytes) == nil)
    // The disk is still in debt.
    try hand.submit(.write(sector: 0, pattern(512)))
    hand.queue.publish()
    try hand.start(at: QueuePosition(available: 10, used: 10), record: record)
    try waitUntil("the next one waits") { device.counters.throttled == 10 }
    #expect(hand.stop() == QueuePosition(available: 11, used: 11))
  }

  /// Two queues that always have more requests both make progress, on one thread and on two. How evenly is tested by
  /// `DiskThrottleTests`, where nothing else needs the CPU.
  @Test(arguments: [1, 2]) func noQueueStarves(threads: Int) throws {
    var limits = RateLimits()
    limits.totalIOPS = RateLimit(perSecond: 2000, burst: 1)
    let rig = try Self.rig(.sync, limits, queues: 2, threads: threads)
    var counts = [0, 0]
    for queue in rig.client.queues {
      for _ in 0..<8 { try Self.submit(queue, .read(sector: 0, bytes: 512)) }
    }
    try waitUntil("both have had a hundred answers: \(counts)") {
      for (number, queue) in rig.client.queues.enumerated() {
        while let outcome = try queue.reap() {
          #expect(outcome.status == .ok)
          counts[number] += 1
          try Self.submit(queue, .read(sector: 0, bytes: 512))
        }
      }
      return counts.allSatisfy { $0 >= 100 }
    }
    rig.device.setLimits(RateLimits())
    for queue in rig.client.queues { _ = try Self.answers(queue, 8) }
  }

  /// The engine is lost while requests wait for a limit: they fail, or stay in flight, like those that the engine had.
  @Test func aLostMediumLosesWhatWaits() throws {
    let script = try Script(completesLater: true)
    var options = RigOptions(script: script)
    options.device.limits = Self.slow
    let rig = try Rig(options)
    try rig.expect(.read(sector: 0, bytes: 4096))
    for _ in 0..<3 { try Self.submit(rig.client.queues[0], .read(sector: 0, bytes: 4096)) }
    try waitUntil("they wait") { rig.device.counters.throttled == 3 }
    script.lose()
    #expect(try Self.answers(rig.client.queues[0], 3) == [.ioError, .ioError, .ioError])
  }
}
