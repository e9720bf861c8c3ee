/// `--on-error stop`: a request that the medium failed is not answered, its queue takes nothing more, and both go on when the
/// operator says so.
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
    // It fails three times, and may be tried again before or after each of them.
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

  /// Nothing that comes after the request that failed is taken, and nobody else notices.
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

  /// A queue that is to stop has no operator to wait for.
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
    // The second one was not taken.
    #expect(statuses == [.ioError] && script.records.count == 1)
  }

  /// What is wrong with the request itself is the driver's.
  @Test func mistakesOfTheDriverAreAnswered() throws {
    var options = RigOptions(size: 1 << 20)
    options.device.onError = .stop
    let rig = try Rig(options)
    try rig.expect(.read(sector: 4096, bytes: 512), .ioError)
    try rig.expect(BlockRequest(type: BlockRequestType(rawValue: 99)), .unsupported)
    try rig.expect(.write(sector: 0, pattern(512)))
  }

  /// The program, its log, and the operator's word.
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

extension Rig {
  /// Whether there is news of a queue that stalls; asked once more there is none.
  fileprivate var hasStalled: Bool {
    device.takeEvents().contains { event in
      if case .notice(let text) = event { text.contains("stalls") } else { false }
    }
  }

  fileprivate func expectOn(_ queue: Int, _ request: BlockRequest) throws {
    #expect(try perform(request, queue: queue).status == .ok)
  }
}
