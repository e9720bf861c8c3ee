/// Injected faults: what the driver sees of each, on every engine, and that other requests are not affected.
import Foundation
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct FaultTests {
  static let engines: [EngineKind] = [.uring, .cached, .aio, .sync, .threads, .mapped]

  struct Case: CustomTestStringConvertible, Sendable {
    var rules: [String]
    var request: BlockRequest
    var status: BlockStatusCode
    var testDescription: String { "\(rules.joined(separator: " ")): \(request.type) is \(status)" }

    init(_ rule: String..., request: BlockRequest, _ status: BlockStatusCode) {
      rules = rule
      self.request = request
      self.status = status
    }
  }

  private static let read = BlockRequest.read(sector: 8, bytes: 8192)
  private static let write = BlockRequest.write(sector: 8, pattern(8192, seed: 5))
  private static let discard = BlockRequest.discard([BlockRange(sector: 8, sectors: 16)])
  private static let zero = BlockRequest.writeZeroes([BlockRange(sector: 8, sectors: 16)])

  /// An errno injected once. An operation that is retried, or done in another way, is no error for the driver.
  private static let once: [Case] = FaultRule.errors.flatMap { name, number -> [Case] in
    let isTransient = number == EAGAIN || number == EINTR
    // What the medium does not support is done in another way, or is only advice.
    let isRefusal = isTransient || number == EOPNOTSUPP || number == EINVAL
    return [
      Case("read:\(name):count=1", request: read, isTransient ? .ok : .ioError),
      Case("write:\(name):count=1", request: write, isTransient ? .ok : .ioError),
      Case("flush:\(name):count=1", request: .flush, isTransient ? .ok : .ioError),
      Case("discard:\(name):count=1", request: discard, isRefusal ? .ok : .ioError),
      Case("any:\(name):count=1", request: zero, isRefusal ? .ok : .ioError),
    ]
  }

  static let cases: [Case] =
    once + [
      Case("write:errno=84:count=1", request: write, .ioError),
      Case("read:eagain:count=50", request: read, .ok),
      Case("write:eintr:count=90", request: write, .ok),
      Case("write:eintr:count=100", request: write, .ioError),
      Case("read:short", request: read, .ok),
      Case("write:short", request: write, .ok),
      Case("write:short=512:rate=0.5", request: write, .ok),
      Case("read:short=700:count=3", request: read, .ok),
      Case("read:short=0:count=1", request: read, .ioError),
      Case("write:short=0:count=3", request: write, .ok),
      Case("write:short=0:count=4", request: write, .ioError),
      Case("any:delay=1ms-3ms", request: read, .ok),
      Case("any:delay=2ms", request: write, .ok),
      Case("any:delay=1ms", "write:eio:count=1", request: write, .ioError),
      Case("any:reorder=4", request: write, .ok),
      Case("any:reorder=4", "flush:delay=1ms", "flush:eio:count=1", request: .flush, .ioError),
      // Conditions that are not met.
      Case("write:eio:range=64k-512k", request: write, .ok),
      Case("write:eio:range=0-4097:count=1", request: write, .ioError),
      Case("read:eio:range=12287-12288:count=1", request: read, .ioError),
      Case("read:eio:range=12288-1M", request: read, .ok),
      Case("write:eio:rate=0", request: write, .ok),
      Case("write:eio:after=1:count=1", request: write, .ok),
      Case("any:eio:range=0-512k", request: .flush, .ok),
      Case("read:eio", request: write, .ok),
    ]

  @Test(arguments: cases) func faultsBecomeStatuses(_ test: Case) throws {
    for engine in Self.engines {
      var options = RigOptions(engine: engine, size: 1 << 20)
      options.device.faults = try test.rules.map { try #require(FaultRule($0)) }
      let rig = try Rig(options)
      try rig.expect(test.request, test.status, "\(engine)")
      // Other sectors are not affected.
      let other = BlockRequest.write(sector: 1024, pattern(512, seed: 3))
      try rig.expect(other, test.rules == ["write:eio:after=1:count=1"] ? .ioError : .ok, "\(engine)")
      guard test.status == .ok, test.request.type == .write else { continue }
      #expect(try firstDifference(rig.contents(at: 4096, count: 8192), pattern(8192, seed: 5)) == nil, "\(engine)")
    }
  }

  /// All faults that must stay hidden from the driver, at the same time, under a verified workload.
  @Test(arguments: engines) func nothingThatCanBeMendedIsNoticed(engine: EngineKind) throws {
    var options = RigOptions(engine: engine, size: 8 << 20)
    options.device.queueCount = 2
    options.device.faults = try [
      "any:eintr:rate=0.05", "any:eagain:rate=0.01:seed=2", "read:short:rate=0.2:seed=3", "write:short:rate=0.2:seed=4",
      "any:delay=10us-200us:rate=0.1:seed=5", "any:reorder=4:rate=0.3:seed=6",
    ].map { try #require(FaultRule($0)) }
    let rig = try Rig(options)
    var verifier = try Verifier(rig.client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(2 << 20)))
    _ = try verifier.run()
    #expect(rig.device.counters.failures == 0)
  }

  /// A fault with a count occurs that many times, however many threads there are.
  @Test func countsAreOfTheDisk() throws {
    var options = RigOptions(engine: .sync, size: 1 << 20)
    options.device.queueCount = 4
    options.device.faults = [try #require(FaultRule("write:eio:count=3"))]
    let rig = try Rig(options)
    var failed = 0
    for number in 0..<16 {
      if try rig.perform(.write(sector: 0, pattern(512)), queue: number % 4).status == .ioError { failed += 1 }
    }
    #expect(failed == 3)
  }

  /// These engines write to the page cache, which reports an error only once: a served image keeps it, even where it could
  /// bypass the page cache.
  @Test(arguments: [EngineKind.mapped, .cached]) func aFailedFlushOfThePageCacheStays(engine: EngineKind) throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 1 << 20)
    let socket = scratch.path + "/s"
    let program = try ChildProgram([
      ChildProgram.vmmBlk, "serve", "--engine", engine.rawValue, "--blk-file", image, "--socket-path", socket, "--inject",
      "flush:eio:count=1",
    ])
    try program.waitForSocket(socket)
    let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20)))
    for _ in 0..<3 { #expect(try client.queues[0].perform(.flush).status == .ioError) }
    #expect(program.end().status == 0)
  }

  /// A request that never completes affects no other, and delays the end of the program only by the configured time.
  @Test(arguments: [EngineKind.sync, .uring, .threads, .mapped]) func neverIsOnlyForOne(engine: EngineKind) throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 1 << 20)
    let socket = scratch.path + "/s"
    let program = try ChildProgram([
      ChildProgram.vmmBlk, "serve", "--engine", engine.rawValue, "--direct", "off", "--blk-file", image, "--socket-path",
      socket, "--inject", "write:never:count=1", "--drain-timeout", "1",
      // In order, later requests on its queue would wait for it.
      "--publish-in-order", "off",
    ])
    try program.waitForSocket(socket)
    let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20)))
    let queue = client.queues[0]
    let stuck = try #require(try queue.submit(.write(sector: 0, pattern(512))))
    var answered: Set<UInt32> = []
    for sector in 1...20 {
      let tag = try #require(try queue.submit(.write(sector: UInt64(sector), pattern(512))))
      queue.publish()
      try waitUntil("write \(sector) is answered") {
        while let outcome = try queue.reap() {
          #expect(outcome.status == .ok)
          answered.insert(outcome.tag)
        }
        return answered.contains(tag)
      }
    }
    #expect(!answered.contains(stuck) && answered.count == 20)
    let (status, output) = program.end()
    #expect(status == 75, "\(output)")
    #expect(output.contains("abandoned"), "\(output)")
  }

  @Test(arguments: [
    "", "write", "write:", "eio", "write:eioo", "write:eio:", "write:eio:rate", "write:eio:rate=2", "write:eio:rate=-1",
    "write:eio:count=0", "write:eio:count=1:count=2", "write:eio:range=1M", "write:eio:range=2M-1M", "write:eio:range=-1",
    "write:delay", "write:delay=5", "write:delay=5ms-1ms", "write:delay=2h", "write:delay=99999999999999999999s",
    "write:reorder=1", "write:reorder=x", "write:errno=0", "write:errno=5000", "flush:short", "all:eio", "write:never=1",
    "write:eio:seed=x", "write:eio:after=-1", "write:short=x", "write:short=", "write:eio:when=now",
  ])
  func otherWordsAreNoRule(text: String) { #expect(FaultRule(text) == nil) }

  @Test func wordsBecomeRules() throws {
    var rule = FaultRule(.write, .error(EIO))
    rule.rate = 0.01
    rule.range = 1 << 20..<2 << 20
    rule.count = 4
    rule.spared = 2
    rule.seed = 9
    #expect(FaultRule("write:eio:rate=0.01:range=1MiB-2M:count=4:after=2:seed=9") == rule)
    #expect(FaultRule("any:delay=5ms")?.effect == .delay(5_000_000...5_000_000))
    #expect(FaultRule("read:short=4k")?.effect == .short(bytes: 4096))
    #expect(FaultRule("flush:errno=28")?.effect == .error(ENOSPC))
  }

  /// Without a medium, no fault can be injected.
  @Test func nothingFailsWithoutAMedium() throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.engine = .null
    options.faults = [FaultRule(.read, .never)]
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    #expect(throws: EngineError.nothingToFail) { try BlockDevice(image: image, options: options) }
  }

  struct Words: CustomTestStringConvertible, Sendable {
    var arguments: [String]
    var says: String
    var testDescription: String { arguments.joined(separator: " ") }
  }

  /// Mistakes on the command line, and in a list of disks.
  @Test(arguments: [
    Words(arguments: ["--inject", "write:oops"], says: "WHICH:FAULT"),
    Words(arguments: ["--inject", "write:eio", "--engine", "null"], says: "has no medium that could fail"),
  ])
  func mistakesAreSaid(_ words: Words) throws {
    let scratch = try Scratch()
    let program = try ChildProgram(
      [ChildProgram.vmmBlk, "serve", "--blk-file", scratch.image(), "--socket-path", scratch.path + "/s"] + words.arguments)
    let (status, output) = program.wait()
    #expect(status == 64 && output.contains(words.says), "\(output)")
  }

  @Test(arguments: [("\"read:eio\"", 0), ("[\"read:eio\", \"write:short\"]", 0), ("[1]", 64), ("\"x\"", 64)])
  func listsHaveRules(value: String, status: Int32) throws {
    let scratch = try Scratch()
    let socket = scratch.path + "/s"
    let list = """
      [{ "blk-file": "\(try scratch.image())", "socket-path": "\(socket)", "inject": \(value) }]
      """
    try list.write(toFile: scratch.path + "/list", atomically: false, encoding: .utf8)
    let program = try ChildProgram([ChildProgram.vmmBlk, "serve", "--disks", scratch.path + "/list"])
    guard status == 0 else {
      let end = program.wait()
      #expect(end.status == status && end.output.contains("\"inject\" has to be"), "\(end.output)")
      return
    }
    try program.waitForSocket(socket)
    let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20)))
    #expect(try client.perform(.read(sector: 0, bytes: 512)).status == .ioError)
    #expect(try client.perform(.write(sector: 0, pattern(4096))).status == .ok)
    try client.shutDown()
    let end = program.end()
    #expect(end.status == 0 && end.output.contains("faults are injected"), "\(end.output)")
  }
}
