/// What a device records of its requests during a trace: each of them once, in order, in a bounded buffer; and nothing
/// afterwards.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct TraceTests {
  /// Begins a trace, and waits until all threads record: they handle that message together with a pause.
  static func start(_ device: BlockDevice, records: Int) throws {
    try device.startTrace(records: records)
    device.pause()
    try waitUntil("every thread has its control messages") {
      _ = device.takeEvents()
      return device.isAtRest
    }
    device.resume()
  }

  /// All records of all threads, by thread number.
  static func records(_ device: BlockDevice) throws -> [Int: [TraceRecord]] {
    device.stopTrace()
    let trace = try #require(device.trace)
    try waitUntil("every thread has stopped its trace") {
      _ = device.takeEvents()
      return trace.isComplete
    }
    return Dictionary(
      uniqueKeysWithValues: trace.threads.map { thread in
        var bytes: [UInt8] = []
        // In parts, as they are sent.
        while bytes.count < thread.buffer.count * TraceRecord.size {
          bytes += thread.buffer.bytes(from: bytes.count / TraceRecord.size, limit: 5)
        }
        return (
          thread.number, stride(from: 0, to: bytes.count, by: TraceRecord.size).compactMap { TraceRecord(bytes, at: $0) }
        )
      })
  }

  /// The order that each request's times must have, with every engine.
  static func check(_ records: [TraceRecord], _ note: String) {
    for record in records where record.kind == .request {
      #expect(record.begin > 0, "\(note)")
      #expect(record.next == 0 || record.next >= record.begin, "\(note)")
      #expect(record.completed >= max(record.begin, record.next), "\(note)")
      #expect(record.answered >= record.completed, "\(note)")
    }
    for record in records where record.kind == .asleep || record.kind == .polling { #expect(record.next >= record.begin) }
    // No answer is published before the request is answered, and all answers are published.
    var unshown = 0
    for record in records {
      switch record.kind {
      case .request: unshown += 1
      case .publication: unshown = 0
      case .asleep, .polling, .kick, .rest: break
      }
    }
    #expect(unshown == 0, "\(note): \(unshown) answers were never published")
  }

  struct Case: Sendable, CustomTestStringConvertible {
    var engine: EngineKind
    var features = BlockFeature.understood
    var metrics = true
    var isLimited = false
    var note = ""
    var testDescription: String { "\(engine.rawValue) \(note)" }
  }

  static let cases =
    WorkerTests.engines.map { Case(engine: $0) } + [
      Case(engine: .sync, metrics: false, note: "without times"), Case(engine: .uring, metrics: false, note: "without times"),
      Case(engine: .mapped, isLimited: true, note: "limited"), Case(engine: .uring, isLimited: true, note: "limited"),
      Case(engine: .uring, features: BlockFeature.understood.union([.inOrder]), note: "in order"),
      Case(engine: .mapped, features: BlockFeature.understood.union([.packedRing]), note: "packed"),
    ]

  /// Requests of every kind before, during and after a trace: exactly those during it are recorded, with what was asked and
  /// answered.
  @Test(arguments: cases) func everyRequestIsThereOnce(_ test: Case) throws {
    var options = RigOptions(engine: test.engine)
    options.device.metrics = test.metrics
    options.features = test.features
    // The limit never delays a request, but every request is checked against it.
    if test.isLimited { options.device.limits.readIOPS = RateLimit(perSecond: 1 << 40, burst: 1 << 40) }
    let rig = try Rig(options)
    func someOfEach() throws {
      for (request, _, count) in MetricsTests.requests {
        for _ in 0..<count { _ = try rig.perform(request) }
      }
    }
    try someOfEach()
    for round in 1...2 {
      try Self.start(rig.device, records: 4096)
      try someOfEach()
      let all = try Self.records(rig.device)
      let records = try #require(all[0])
      Self.check(records, "\(test) \(round)")
      let requests = records.filter { $0.kind == .request }
      let expected = MetricsTests.requests.flatMap { Array(repeating: ($0.0, $0.1), count: $0.2) }
      #expect(requests.count == expected.count)
      for (record, (request, kind)) in zip(requests, expected) {
        #expect(record.request == kind)
        guard kind == .read || kind == .write, request.sector < 1 << 40 else { continue }
        #expect(record.sector == request.sector && record.status == 0)
        #expect(record.bytes == (kind == .read ? 4096 : 2048))
      }
      #expect(requests.count { $0.status == 1 } == 3 && requests.count { $0.status == 2 } == 1)
      // Afterwards nothing is added.
      try someOfEach()
      #expect(rig.device.trace?.threads.first?.buffer.count == records.count)
    }
    rig.device.dropTrace()
    #expect(rig.device.trace == nil)
    try someOfEach()
  }

  /// A trace does not disturb the metrics.
  @Test func figuresStayRightMeanwhile() throws {
    let rig = try Rig(RigOptions(engine: .mapped))
    for round in 0..<6 {
      if round % 2 == 1 { try rig.device.startTrace(records: 64) } else { rig.device.dropTrace() }
      for _ in 0..<50 { try rig.expect(.read(sector: 0, bytes: 512)) }
      for _ in 0..<20 { try rig.expect(.write(sector: 8, pattern(512))) }
    }
    try waitUntil("everything is counted") {
      let latencies = rig.device.metrics().latencies
      return latencies[.read]?.count == 300 && latencies[.write]?.count == 120
    }
  }

  /// However many requests there are, the latest records are kept and the others are counted.
  @Test func aSmallBufferKeepsTheLatest() throws {
    let rig = try Rig(RigOptions(engine: .sync))
    try Self.start(rig.device, records: 50)
    for number in 0..<500 { try rig.expect(.read(sector: UInt64(number), bytes: 512)) }
    let records = try #require(try Self.records(rig.device)[0])
    let buffer = try #require(rig.device.trace?.threads.first?.buffer)
    #expect(records.count == 64 && buffer.overwritten > 400)
    let sectors = records.filter { $0.kind == .request }.map(\.sector)
    #expect(sectors.last == 499)
    #expect(sectors == Array((500 - UInt64(sectors.count))..<500))
    #expect(buffer.bytes(from: 64, limit: 10).isEmpty && buffer.bytes(from: -1, limit: 10).isEmpty)
    #expect(buffer.bytes(from: 60, limit: 10).count == 4 * TraceRecord.size)
  }

  /// A thread that has used up its recording budget pauses, skips recording in the meantime, and continues in the next period:
  /// the records are complete, and every request is right.
  @Test(arguments: [EngineKind.sync, .uring, .mapped], [false, true])
  func aBudgetIsKept(_ engine: EngineKind, metrics: Bool) throws {
    var options = RigOptions(engine: engine)
    options.device.metrics = metrics
    let rig = try Rig(options)
    try rig.device.startTrace(records: 1 << 16, budget: 20)
    let end = ContinuousClock.now + .milliseconds(350)
    var performed = 0
    while ContinuousClock.now < end {
      try rig.expect(.write(sector: UInt64(performed % 64), pattern(512, seed: performed)))
      performed += 1
      try rig.expect(.read(sector: 0, bytes: 512))
      performed += 1
    }
    let records = try #require(try Self.records(rig.device)[0])
    Self.check(records, "\(engine)")
    #expect(records.count { $0.kind == .request } <= performed)
    let rests = records.filter { $0.kind == .rest }
    for rest in rests {
      #expect(rest.next >= rest.begin)
      // A request taken before the pause may still be answered in it.
      #expect(!records.contains { $0.kind == .request && $0.begin > rest.begin && $0.begin < rest.next })
    }
    // However slow the machine is: with so many requests, some period exceeds its budget.
    #expect(!rests.isEmpty || performed < 400)
    if metrics {
      try waitUntil("everything is counted") {
        rig.device.metrics().latencies.values.reduce(0) { $0 + $1.count } == UInt64(performed)
      }
    }
  }

  /// A thread that starts during a trace is part of it, and one that ends leaves its records.
  @Test func queuesComeAndGoMeanwhile() throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.engine = .sync
    options.queueCount = 2
    let path = try scratch.image("image", size: 1 << 20)
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: path, direct: .off)), options: options)
    let memory = try SharedMemory()
    try device.startTrace(records: 1024)
    #expect(device.trace?.threads.isEmpty == true)
    let first = try HandQueue(device, 0, memory)
    let second = try HandQueue(device, 1, memory, beside: first)
    try first.start()
    for _ in 0..<5 { #expect(try first.queue.perform(.read(sector: 0, bytes: 512)).status == .ok) }
    let position = try #require(first.stop())
    try second.start()
    for _ in 0..<7 { #expect(try second.queue.perform(.read(sector: 1, bytes: 512)).status == .ok) }
    try first.start(at: position)
    for _ in 0..<3 { #expect(try first.queue.perform(.read(sector: 2, bytes: 512)).status == .ok) }
    let records = try Self.records(device).mapValues { $0.filter { $0.kind == .request } }
    #expect(records[0]?.map(\.sector) == [0, 0, 0, 0, 0, 2, 2, 2])
    #expect(records[1]?.map(\.sector) == Array(repeating: 1, count: 7))
    #expect(records[1]?.allSatisfy { $0.queue == 1 } == true)
    _ = first.stop()
    _ = second.stop()
  }

  /// A request still in flight when the trace ends is recorded without an answer.
  @Test func whatIsInFlightAtTheEndIsSeen() throws {
    var options = RigOptions(engine: .sync)
    options.device.onError = .stop
    options.device.faults = [try #require(FaultRule("read:eio:count=1"))]
    let rig = try Rig(options)
    try Self.start(rig.device, records: 64)
    let queue = rig.client.queues[0]
    _ = try #require(try queue.submit(.read(sector: 3, bytes: 512)))
    queue.publish()
    try waitUntil("it is taken") { rig.device.counters.reads == 1 }
    let requests = try #require(try Self.records(rig.device)[0]).filter { $0.kind == .request }
    #expect(requests.count == 1)
    #expect(requests.first?.answered == 0 && requests.first?.sector == 3)
    rig.device.resume()
    try waitUntil("it is answered") { try queue.reap()?.status == .ok }
  }

  /// A record's bytes have a fixed meaning.
  @Test func aRecordIsReadAsItWasWritten() throws {
    let record = TraceRecord(
      .request, queue: 255, request: .flush, status: 2, head: 0xabcd, first: 1 << 50, second: 1 << 31, times: (1, 2, 3, .max))
    var copy = record
    let bytes = unsafe withUnsafeBytes(of: &copy) { unsafe Array($0) }
    #expect(bytes.count == TraceRecord.size && MemoryLayout<TraceRecord>.stride == TraceRecord.size)
    let read = try #require(TraceRecord(bytes, at: 0))
    #expect(read == record && read.kind == .request && read.request == .flush && read.status == 2)
    #expect(read.queue == 255 && read.head == 0xabcd && read.sector == 1 << 50 && read.bytes == 1 << 31)
    #expect(read.begin == 1 && read.next == 2 && read.completed == 3 && read.answered == .max)
    var other = bytes
    other[0] = 99
    #expect(TraceRecord(other, at: 0) == nil)
  }
}
