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
    var testDescription: String { "\(engine) on \(medium), direct \(direct), \(queues) queues, block \(blockSize)" }
  }

  static let cases: [Case] = [EngineKind.uring, .aio, .sync].flatMap { engine in
    [
      Case(engine: engine, medium: .disk, direct: .auto, queues: 1, threads: 1),
      Case(engine: engine, medium: .disk, direct: .off, queues: 4, threads: 2),
      Case(engine: engine, medium: .memory, direct: .auto, queues: 2, threads: 2),
      Case(engine: engine, medium: .memory, direct: .off, queues: 2, threads: 1, blockSize: 4096),
    ]
  }

  @Test(arguments: cases) func everyAcknowledgedWriteIsThere(_ test: Case) throws {
    let scratch = try Scratch(in: test.medium.folder)
    let path = try scratch.image(size: 32 << 20)
    let image = try ImageFile(
      ImageOptions(path: path, direct: test.direct, logicalBlockSize: test.blockSize))
    var options = BlockDeviceOptions()
    options.queueCount = test.queues
    options.threads = test.threads
    options.engine = test.engine
    let device = try BlockDevice(image: image, options: options)
    let memory = try DriverMemory(anonymous: [(GuestAddress(0), 16 << 20), (GuestAddress(1 << 32), 16 << 20)])
    let client = try BlockClient(try InProcessTransport(device: device, memory: memory))
    client.depth = 16
    var verifier = try Verifier(client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(8 << 20)))
    _ = try verifier.run()
    try client.shutDown()
    #expect(device.counters.failures == 0)
    #expect(device.counters.requests > 100)
  }
}
