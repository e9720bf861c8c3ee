/// `--on-error stop`: a request that the medium failed is not answered, its queue takes no more requests, and both continue
/// when the operator resumes them.
import Foundation
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct StallTests {
  /// Each kind of request, and how often the medium fails it.
  struct Case: CustomTestStringConvertible, Sendable {
    var request: BlockRequest
    var rule: String
    var testDescription: String { "\(request.type), \(rule)" }
  }

  static let cases = [
    Case(request: .write(sector: 8, pattern(8192, seed: 5)), rule: "write:eio:count=3"),
    Case(request: .read(sector: 8, bytes: 8192), rule: "read:eio:count=3"),
    Case(request: .discard([BlockRange(sector: 8, sectors: 16)]), rule: "discard:eio:count=3"),
    Case(
      request: .writeZeroes([BlockRange(sector: 8, sectors: 16), BlockRange(sector: 64, sectors: 8)]),
      rule: "any:eio:count=3:after=1"),
  ]

  @Test(arguments: cases, [EngineKind.uring, .aio, .sync, .threads, .mapped])
  func goesOnWhenItIsMended(_ test: Case, engine: EngineKind) throws {
    var options = RigOptions(engine: engine, size: 1 << 20)
    options.device.onError = .stop
    options.device.faults = [try #require(FaultRule(test.rule))]
    let rig = try Rig(options)
    let queue = rig.client.queues[0]
    _ = try #require(try queue.submit(test.request))
    queue.publish()
    // It fails three times, and may be retried before or after each time.
    var outcome: BlockOutcome?
    try waitUntil("\(test.request.type) is answered") {
      rig.device.resume()
      outcome = try queue.reap()
      return outcome != nil
    }
    #expect(outcome?.status == .ok)
    if test.request.type == .write {
      #expect(try firstDifference(rig.contents(at: 4096, count: 8192), pattern(8192, seed: 5)) == nil)
    }
    try rig.expect(.write(sector: 1024, pattern(512)))
    #expect(rig.device.counters.failures == 0)
  }

  /// No request after the failed one is taken, and other queues are not affected.
  @Test(arguments: [false, true]) func theQueueWaitsAlone(completesLater: Bool) throws {
    let script = try Script([.result(-EIO)], completesLater: completesLater)
    var options = RigOptions(size: 1 << 20, script: script)
    options.device.queueCount = 2
    options.device.onError = .stop
    let rig = try Rig(options)
    let queue = rig.client.queues[0]
    _ = try #require(try queue.submit(.write(sector: 0, pattern(512, seed: 1))))
    queue.publish()
    try waitUntil("the queue stalls") { rig.hasStalled }
    _ = try #require(try queue.submit(.write(sector: 1, pattern(512, seed: 2))))
    queue.publish()
    for _ in 0..<8 { try rig.expectOn(1, .write(sector: 8, pattern(512))) }
    #expect(try queue.reap() == nil)
    var outcomes: [BlockOutcome] = []
    try waitUntil("both are answered") {
      rig.device.resume()
      while let outcome = try queue.reap() { outcomes.append(outcome) }
      return outcomes.count == 2
    }
    #expect(outcomes.map(\.status) == [.ok, .ok])
    #expect(try firstDifference(rig.contents(at: 0, count: 1024), pattern(512, seed: 1) + pattern(512, seed: 2)) == nil)
  }

  /// A queue that is being stopped does not wait for the operator.
  @Test func aStopTellsTheDriver() throws {
    let script = try Script([.result(-EIO), .result(-ENOSPC)])
    var options = RigOptions(size: 1 << 20, script: script)
    options.device.onError = .stop
    let rig = try Rig(options)
    let queue = rig.client.queues[0]
    for sector: UInt64 in 0..<2 { _ = try #require(try queue.submit(.write(sector: sector, pattern(512)))) }
    queue.publish()
    try waitUntil("the queue stalls") { rig.hasStalled }
    #expect(rig.transport.stopQueue(0) != nil)
    var statuses: [BlockStatusCode] = []
    while let outcome = try queue.reap() { statuses.append(outcome.status) }
    // The second request was not taken.
    #expect(statuses == [.ioError] && script.records.count == 1)
  }

  /// A queue stops while the first of several requests has failed, and another device continues. If answers come in order, or
  /// an in-flight record is kept, the driver never sees the failure.
  @Test(
    arguments: [(true, false, false), (false, true, false), (true, true, false), (true, false, true), (true, true, true)],
    [0, 1, 3])
  func aStopLeavesWhatFailedToTheNext(
    _ kind: (isInOrder: Bool, isRecorded: Bool, isKnown: Bool), before: Int
  ) throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 1 << 20)
    let memory = try SharedMemory()
    let requests = 6
    let record = kind.isRecorded ? try RecordFile(queues: 1, size: 64).memory : nil
    // Completions come later: requests submitted after the failed one are in flight and are finished.
    let actions = Array(repeating: Script.Action.whole, count: before) + [.result(-EIO)]
    let script = try Script(actions, completesLater: true)
    let first = try stallingDisk(path, script, isKnown: kind.isKnown)
    let hand = try HandQueue(
      first, 0, memory, size: 64, features: BlockFeature.understood.union(.inOrder),
      publishesInOrder: kind.isInOrder && !kind.isKnown)
    script.hold()
    for number in 0..<requests { try hand.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
    hand.queue.publish()
    try hand.start(record: record)
    try waitUntil("the medium has all of them") { script.held == requests }
    script.release()
    try waitUntil("the queue stalls") { first.hasStalled }
    let position = try #require(hand.stop())
    if kind.isInOrder {
      #expect(hand.usedIndex == UInt16(before) && position.used == UInt16(before))
      if !kind.isRecorded { #expect(position.available == UInt16(before)) }
    }
    #expect(first.counters.failures == 0)
    // Another device, whose medium works.
    let second = try stallingDisk(path, nil, isKnown: kind.isKnown)
    var activation = hand.activation
    activation.position = position
    activation.inflight = record
    let attended = AttendedDevice(second)
    try attended.startAndWait(activation)
    var outcomes: [BlockOutcome] = []
    try waitUntil("all are answered") {
      while let outcome = try hand.queue.reap() { outcomes.append(outcome) }
      return outcomes.count == requests
    }
    #expect(outcomes.allSatisfy { $0.status == .ok })
    let end = UInt16(requests)
    #expect(attended.stopAndWait(queue: 0) == QueuePosition(available: end, used: end))
    #expect(try hand.queue.reap() == nil)
    let bytes = (0..<requests).flatMap { pattern(512, seed: $0) }
    #expect(try firstDifference(scratch.contents(path, at: 0, count: bytes.count), bytes) == nil)
  }

  /// The same while more requests than there are slots are being recovered. In order, nothing after the failed one can be
  /// answered, so the stop does not wait until all have been popped again: they would need slots that never become free.
  @Test(arguments: [(true, false), (false, false), (false, true), (true, true)], [false, true])
  func aStopDuringTheRecoveryLeavesTheRestToTheNext(
    _ kind: (isInOrder: Bool, isKnown: Bool), stallsFirst: Bool
  ) throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 1 << 20)
    let requests = 1300
    let record = try RecordFile(queues: 1, size: 4096)
    let script = try Script([.result(-EIO)], completesLater: true)
    let first = try stallingDisk(path, script, isKnown: kind.isKnown)
    let hand = try HandQueue(
      first, 0, SharedMemory(size: 16 << 20), size: 4096, features: BlockFeature.understood.union(.inOrder),
      publishesInOrder: kind.isInOrder && !kind.isKnown)
    for number in 0..<requests { try hand.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
    hand.queue.publish()
    record.interrupt((0..<requests).map { hand.queue.ring.ring.availableEntry(UInt16($0)).loadRelaxed() })
    script.hold()
    try hand.start(record: record.memory)
    try waitUntil("every slot is taken") { script.held == LaneContext.slots }
    if stallsFirst {
      script.release()
      try waitUntil("the queue stalls") { first.hasStalled }
    }
    #expect(hand.attended.stop(queue: 0))
    script.release()
    var position = QueuePosition()
    try waitUntil("it has stopped") {
      for case .stopped(0, let found) in hand.attended.takeEvents() {
        position = found
        return true
      }
      return false
    }
    if kind.isInOrder { #expect(hand.usedIndex == 0 && record.inFlight.count == requests) }
    #expect(first.counters.failures == 0)
    // Another device, whose medium works.
    let second = try stallingDisk(path, nil, isKnown: kind.isKnown)
    var activation = hand.activation
    activation.position = position
    activation.inflight = record.memory
    let attended = AttendedDevice(second)
    try attended.startAndWait(activation)
    var left = requests
    try waitUntil("all are answered") {
      while let outcome = try hand.queue.reap() {
        #expect(outcome.status == .ok)
        left -= 1
      }
      return left == 0
    }
    let end = UInt16(requests)
    #expect(attended.stopAndWait(queue: 0) == QueuePosition(available: end, used: end))
    #expect(record.inFlight.isEmpty)
    let bytes = (0..<requests).flatMap { pattern(512, seed: $0) }
    #expect(try firstDifference(scratch.contents(path, at: 0, count: bytes.count), bytes) == nil)
  }

  /// A disk whose medium does what the script says, and which stalls when it fails a request.
  ///
  /// - Parameter isKnown: the driver can rely on the order (IN_ORDER).
  private func stallingDisk(_ path: String, _ script: Script?, isKnown: Bool) throws -> BlockDevice {
    var options = BlockDeviceOptions()
    options.engine = .sync
    options.onError = .stop
    if isKnown { options.requestedFeatures = .inOrder }
    let image = try ImageFile(ImageOptions(path: path, direct: .off, isLocked: false))
    guard let script else { return try BlockDevice(image: image, options: options) }
    return try BlockDevice(image: image, options: options) { script.serve($0, $1) }
  }

  /// An invalid request is answered: its error is the driver's, not the medium's.
  @Test func mistakesOfTheDriverAreAnswered() throws {
    var options = RigOptions(size: 1 << 20)
    options.device.onError = .stop
    let rig = try Rig(options)
    try rig.expect(.read(sector: 4096, bytes: 512), .ioError)
    try rig.expect(BlockRequest(type: BlockRequestType(rawValue: 99)), .unsupported)
    try rig.expect(.write(sector: 0, pattern(512)))
  }

  /// The program, its log, and the operator's signal.
  @Test func aSignalIsTheWord() throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 1 << 20)
    let socket = scratch.path + "/s"
    let program = try ChildProgram([
      ChildProgram.vmmBlk, "serve", "--blk-file", image, "--socket-path", socket, "--on-error", "stop", "--inject",
      "write:enospc:count=1",
    ])
    try program.waitForSocket(socket)
    let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20)))
    let queue = client.queues[0]
    _ = try #require(try queue.submit(.write(sector: 0, pattern(512))))
    queue.publish()
    try waitUntil("the operator is told: \(program.output)") { program.output.contains("stalls, because its image failed") }
    #expect(try queue.reap() == nil)
    program.send(SIGUSR1)
    var outcome: BlockOutcome?
    try waitUntil("it is answered: \(program.output)") {
      outcome = try queue.reap()
      return outcome != nil
    }
    #expect(outcome?.status == .ok)
    try client.shutDown()
    let (status, output) = program.end()
    #expect(status == 0, "\(output)")
  }
}

extension BlockDevice {
  /// Whether an event reports a stalled queue; asked again, there is none.
  fileprivate var hasStalled: Bool {
    takeEvents().contains { event in
      if case .notice(let text) = event { text.contains("stalls") } else { false }
    }
  }

}

extension Rig {
  fileprivate var hasStalled: Bool { device.hasStalled }

  fileprivate func expectOn(_ queue: Int, _ request: BlockRequest) throws {
    #expect(try perform(request, queue: queue).status == .ok)
  }
}
