/// A disk's metrics: counts that add up, depths that return to zero, latencies that are no shorter than what they measure.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct LatencyHistogramTests {
  @Test func everyTimeIsInItsBucket() {
    var end: UInt64 = 0
    for bucket in 0..<LatencyScale.bucketCount {
      let range = LatencyScale.range(of: bucket)
      // No gaps, and each bucket is narrow compared with the times in it.
      #expect(range.lowerBound == end)
      #expect(UInt64(range.count - 1) <= range.lowerBound / 32)
      for time in [range.lowerBound, range.lowerBound + UInt64(range.count) / 2, range.upperBound - 1] {
        #expect(LatencyScale.bucket(of: time) == bucket)
      }
      end = range.upperBound
    }
    #expect(end > 1 << 40)
    #expect(LatencyScale.bucket(of: .max) == LatencyScale.bucketCount - 1)
  }

  @Test func itSaysWhatWasAdded() {
    var histogram = LatencyHistogram()
    #expect(histogram.count == 0 && histogram.quantile(0.5) == nil && histogram.mean == nil)
    for time: UInt64 in 1...100 { histogram.add(time * 1000) }
    histogram.add(7, count: 0)
    histogram.add(50, count: 100)
    #expect(histogram.count == 200)
    #expect(histogram.sum == 5_050_000 + 5000)
    #expect(histogram.mean == 25275)
    #expect(histogram.quantile(0) == 50 && histogram.quantile(0.5) == 50)
    for (part, time) in [(0.75, 50_000.0), (0.99, 98_000), (1, 100_000)] {
      let found = Double(histogram.quantile(part) ?? 0)
      #expect(abs(found / time - 1) < 0.017, "\(part)")
    }
    #expect(histogram.count(within: 49) == 0 && histogram.count(within: 50) == 100)
    #expect(histogram.count(within: .max) == 200)
    #expect(histogram.buckets.reduce(0) { $0 + $1.count } == 200)
  }

  @Test func twoAreAsOne() {
    let times: [[UInt64]] = [[5_000, 900, 70_000_000], [1, 5_001, 1 << 50], []]
    var all = LatencyHistogram()
    var sum = LatencyHistogram()
    for some in times {
      var part = LatencyHistogram()
      for time in some {
        part.add(time)
        all.add(time)
      }
      sum.add(part)
    }
    #expect(sum.buckets == all.buckets && sum.sum == all.sum && sum.count == 6)
  }

  /// The tick clock lies between two system clock readings around it, and never runs backwards.
  @Test func theTickClockKeepsTime() {
    let clock = TickClock.shared
    let outer = Clock.now
    let start = clock.now
    let inner = Clock.now
    usleep(20_000)
    let innerEnd = Clock.now
    let end = clock.now
    let outerEnd = Clock.now
    let time = Double(clock.nanoseconds(from: start, to: end))
    #expect(time >= Double(innerEnd - inner) * 0.97)
    #expect(time <= Double(outerEnd - outer) * 1.03)
    #expect(clock.nanoseconds(from: end, to: start) == 0)
    #expect(clock.nanoseconds(from: 0, to: .max) > 1 << 50)
  }
}

@Suite struct MetricsTests {
  /// Some of each kind: `nil` for kinds that the engine does not tell apart.
  static let requests: [(BlockRequest, RequestKind, Int)] = [
    (.read(sector: 0, bytes: 4096), .read, 7), (.write(sector: 8, pattern(2048)), .write, 5),
    (BlockRequest(type: .flush), .flush, 3), (.discard([BlockRange(sector: 64, sectors: 8)]), .discard, 2),
    (.writeZeroes([BlockRange(sector: 72, sectors: 8)]), .writeZeroes, 4),
    (BlockRequest(type: BlockRequestType(rawValue: 99)), .other, 1),
    (.read(sector: 1 << 40, bytes: 512), .read, 1), (.write(sector: 1 << 40, pattern(512)), .write, 2),
  ]

  /// The counts per kind after `requests` were performed that many times, if all are counted.
  private static func expected(_ times: Int) -> [RequestKind: UInt64] {
    var counts = Dictionary(uniqueKeysWithValues: RequestKind.allCases.map { ($0, UInt64(0)) })
    for (_, kind, count) in requests { counts[kind, default: 0] += UInt64(count * times) }
    return counts
  }

  private static func check(_ device: BlockDevice, times: Int, _ place: SourceLocation = #_sourceLocation) throws {
    // The last answer may be published before it is counted.
    try waitUntil("everything is counted") {
      device.metrics().latencies.mapValues(\.count) == expected(times)
    }
    let metrics = device.metrics()
    // The threads may not be asleep yet.
    func ofRequests(_ counters: BlockCounters) -> BlockCounters {
      var counters = counters
      for figure in [\BlockCounters.turns, \.systemCalls, \.kicks, \.calls] { counters[keyPath: figure] = 0 }
      return counters
    }
    #expect(ofRequests(metrics.counters) == ofRequests(device.counters), sourceLocation: place)
    #expect(metrics.counters.unsupported == UInt64(times), sourceLocation: place)
    #expect(metrics.counters.ioErrors == UInt64(3 * times), sourceLocation: place)
    #expect(metrics.counters.refusals == UInt64(3 * times), sourceLocation: place)
    #expect(metrics.counters.failures == UInt64(4 * times), sourceLocation: place)
    #expect(metrics.counters.mediumFailures == 0, sourceLocation: place)
    try waitUntil("nothing is in flight") { device.metrics().depth == 0 }
  }

  /// - Parameter durable: without FLUSH and CONFIG_WCE, each write is stable before its answer.
  @Test(arguments: WorkerTests.engines, [false, true]) func everyRequestIsCountedOnce(engine: EngineKind, durable: Bool) throws
  {
    var options = RigOptions(engine: engine)
    options.device.queueCount = 3
    options.device.threads = 2
    if durable { options.features.subtract([.blockConfigWCE, .blockFlush]) }
    let rig = try Rig(options)
    for queue in 0..<3 {
      for (request, _, count) in Self.requests {
        for _ in 0..<count { _ = try rig.perform(request, queue: queue) }
      }
    }
    try Self.check(rig.device, times: 3)
    #expect(rig.device.metrics().depths.count == 3)
  }

  /// Deep queues, so that many are taken in one turn, with every way of holding back or recording an answer.
  @Test(arguments: [EngineKind.uring, .mapped, .sync, .null], [(false, false), (true, false), (false, true)])
  func manyAtOnceAreCountedOnce(engine: EngineKind, kind: (isInOrder: Bool, isRecorded: Bool)) throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.engine = engine
    let device = try BlockDevice(
      image: ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off)), options: options)
    let hand = try HandQueue(device, 0, SharedMemory(), size: 128, publishesInOrder: kind.isInOrder)
    var submitted = 0
    for (request, _, count) in Self.requests {
      for _ in 0..<count {
        try hand.submit(request)
        submitted += 1
      }
    }
    hand.queue.publish()
    try hand.start(record: kind.isRecorded ? try RecordFile(queues: 1, size: 128).memory : nil)
    var answered = 0
    try waitUntil("all are answered") {
      while try hand.queue.reap() != nil { answered += 1 }
      return answered == submitted
    }
    try Self.check(device, times: 1)
    _ = hand.stop()
  }

  @Test func whatTheMediumFailsIsTold() throws {
    let script = try Script([.result(-EIO), .whole, .result(-ENOSPC), .result(-EIO)])
    let rig = try Rig(RigOptions(script: script))
    try rig.expect(.write(sector: 0, pattern(512)), .ioError)
    try rig.expect(.write(sector: 0, pattern(512)))
    try rig.expect(.write(sector: 0, pattern(512)), .ioError)
    try rig.expect(BlockRequest(type: .flush), .ioError)
    try rig.expect(.read(sector: 1 << 40, bytes: 512), .ioError)
    let counters = rig.device.metrics().counters
    #expect(counters.mediumFailures == 3 && counters.refusals == 1 && counters.ioErrors == 4)
  }

  @Test func whatIsUnderWayIsSeenAndTakesItsTime() throws {
    let script = try Script(completesLater: true)
    var options = RigOptions(script: script)
    options.device.queueCount = 2
    let rig = try Rig(options)
    script.hold()
    let queue = rig.client.queues[1]
    for sector: UInt64 in 0..<5 { _ = try #require(try queue.submit(.write(sector: sector, pattern(512)))) }
    queue.publish()
    try waitUntil("five are in flight") { script.held == 5 && rig.device.metrics().depths == [0, 5] }
    let start = Clock.now
    usleep(30_000)
    let held = Clock.now - start
    script.release()
    try waitUntil("all are answered") {
      while try queue.reap() != nil {}
      return rig.device.metrics().depths == [0, 0]
    }
    try waitUntil("their times are counted") { rig.device.metrics().latencies[.write]?.count == 5 }
    let shortest = try #require(rig.device.metrics().latencies[.write]?.quantile(0))
    #expect(Double(shortest) > Double(held) * 0.95)
  }

  /// A stopped queue's counts stay, and the next queue adds to them.
  @Test func countsOutliveAQueue() throws {
    let scratch = try Scratch()
    let device = try BlockDevice(
      image: ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off)), options: BlockDeviceOptions())
    let hand = try HandQueue(device, 0, SharedMemory())
    var position = QueuePosition()
    for round: UInt64 in 1...3 {
      try hand.start(at: position)
      _ = try hand.perform(.read(sector: 0, bytes: 512))
      position = try #require(hand.stop())
      #expect(device.metrics().latencies[.read]?.count == round)
      #expect(device.metrics().depths == [0])
    }
  }

  @Test func nothingIsKeptUnlessItIsWanted() throws {
    var options = RigOptions()
    options.device.metrics = false
    let rig = try Rig(options)
    try rig.expect(.write(sector: 0, pattern(512)))
    let metrics = rig.device.metrics()
    #expect(metrics.counters.writes == 1)
    #expect(metrics.latencies.isEmpty && metrics.depths.isEmpty && metrics.depth == 0)
  }
}
