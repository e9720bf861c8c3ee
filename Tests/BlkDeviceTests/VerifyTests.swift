/// Random workloads against every engine, on both kinds of medium, checked against a model of the disk.
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

@Suite(.serialized) struct VerifyTests {
  struct Case: CustomTestStringConvertible, Sendable {
    var engine: EngineKind
    var medium: Medium
    var direct: ImageOptions.Direct
    var queues: Int
    var threads: Int
    var blockSize = 512
    var setup = UringSetup()
    var waiting = Waiting.sleep
    var notification = Notification.batch
    var note = ""
    var testDescription: String {
      "\(engine) on \(medium), direct \(direct), \(queues) queues, block \(blockSize)\(note.isEmpty ? "" : ", " + note)"
    }
  }

  static let cases: [Case] = [EngineKind.uring, .aio, .sync].flatMap { engine in
    [
      Case(engine: engine, medium: .disk, direct: .auto, queues: 1, threads: 1),
      Case(engine: engine, medium: .disk, direct: .off, queues: 4, threads: 2),
      Case(engine: engine, medium: .memory, direct: .auto, queues: 2, threads: 2),
      Case(engine: engine, medium: .memory, direct: .off, queues: 2, threads: 1, blockSize: 4096),
    ]
  }

  private static func uring(_ note: String, _ change: (inout UringSetup) -> Void) -> Case {
    var setup = UringSetup()
    change(&setup)
    return Case(engine: .uring, medium: .disk, direct: .auto, queues: 2, threads: 1, setup: setup, note: note)
  }

  /// Each option that can be set differently, one at a time.
  static let variants: [Case] = [
    uring("cooperative") { $0.completion = .cooperative },
    uring("plain") { $0.completion = .plain },
    uring("submission thread") { $0.completion = .submissionThread(cpu: nil) },
    uring("no registered file") { $0.registersFile = false },
    uring("no registered ring") { $0.registersRing = false },
    uring("registered buffers") { $0.registersBuffers = true },
    uring("waits for four") { $0.minimumWait = 4 },
    uring("hands over three at once") { $0.handover = .every(3) },
    uring("hands over whole turns") { $0.handover = .whole },
    uring("no index array") { $0.usesIndexArray = false },
    uring("kicks through epoll") { $0.kicksThroughEpoll = true },
    Case(engine: .threads, medium: .disk, direct: .auto, queues: 2, threads: 1),
    Case(engine: .mapped, medium: .memory, direct: .off, queues: 2, threads: 2),
    Case(engine: .mapped, medium: .disk, direct: .off, queues: 1, threads: 1),
    Case(engine: .cached, medium: .disk, direct: .off, queues: 2, threads: 2),
    Case(engine: .cached, medium: .memory, direct: .off, queues: 2, threads: 1),
    Case(engine: .auto, medium: .disk, direct: .off, queues: 2, threads: 1, notification: .each, note: "calls each"),
    Case(
      engine: .auto, medium: .memory, direct: .auto, queues: 4, threads: 2, blockSize: 4096,
      waiting: .adaptive(maximumMicroseconds: 50), note: "as it comes"),
    Case(engine: .mapped, medium: .memory, direct: .auto, queues: 2, threads: 1, notification: .each, note: "calls each"),
    Case(engine: .uring, medium: .disk, direct: .auto, queues: 2, threads: 2, waiting: .poll(microseconds: 50), note: "polls"),
    Case(
      engine: .sync, medium: .memory, direct: .auto, queues: 2, threads: 1, waiting: .adaptive(maximumMicroseconds: 100),
      note: "polls adaptively"),
    Case(engine: .aio, medium: .disk, direct: .auto, queues: 1, threads: 1, waiting: .busy, note: "busy"),
    Case(engine: .uring, medium: .disk, direct: .auto, queues: 1, threads: 1, waiting: .busy, note: "busy"),
    Case(engine: .uring, medium: .disk, direct: .auto, queues: 2, threads: 1, notification: .each, note: "calls each"),
    Case(
      engine: .uring, medium: .disk, direct: .auto, queues: 2, threads: 1,
      notification: .coalesce(count: 8, microseconds: 200), note: "calls coalesced"),
    Case(
      engine: .sync, medium: .memory, direct: .auto, queues: 1, threads: 1,
      notification: .coalesce(count: 64, microseconds: 100), note: "calls coalesced"),
  ]

  @Test(arguments: cases + variants) func everyAcknowledgedWriteIsThere(_ test: Case) throws {
    let scratch = try Scratch(in: test.medium.folder)
    let path = try scratch.image(size: 32 << 20)
    let image = try ImageFile(
      ImageOptions(path: path, direct: test.direct, logicalBlockSize: test.blockSize))
    var options = BlockDeviceOptions()
    options.queueCount = test.queues
    options.threads = test.threads
    options.engine = test.engine
    options.uring = test.setup
    options.waiting = test.waiting
    options.notification = test.notification
    let device = try BlockDevice(image: image, options: options)
    let memory = try DriverMemory(anonymous: [(GuestAddress(0), 16 << 20), (GuestAddress(1 << 32), 16 << 20)])
    let client = try BlockClient(try InProcessTransport(device: device, memory: memory))
    client.depth = 16
    var verifier = try Verifier(client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(4 << 20)))
    _ = try verifier.run()
    try client.shutDown()
    #expect(device.counters.failures == 0)
    #expect(device.counters.requests > 50)
  }
}
