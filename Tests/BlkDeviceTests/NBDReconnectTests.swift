/// Servers that go away and come back, come back as something else, or never return.
import Foundation
import GuestDriver
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.serialized, .enabled(if: Host.hasNBD, "nbdkit or libnbd is not installed")) struct NBDReconnectTests {
  private static func rig(
    _ server: NBDServer, timeout: Int = 120, keepsWrites: Bool = false, queues: Int = 1
  ) throws -> Rig {
    var options = RigOptions()
    options.nbd = try server.options(timeout: timeout, keepsWrites: keepsWrites)
    options.device.queueCount = queues
    return try Rig(options)
  }

  /// A server whose data survives it.
  private static func lastingServer(size: Int = 16 << 20) throws -> NBDServer {
    let server = try NBDServer(["file", "DIR/disk"], starts: false)
    _ = try server.scratch.image(size: size)
    try server.start()
    return server
  }

  @Test(arguments: [1, 3]) func killedUnderVerifiedLoad(queues: Int) throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, keepsWrites: true, queues: queues)
    try rig.verifyThroughKills(4, after: 10_000...60_000, for: 0...30_000, kill: server.kill, start: server.start)
    #expect(rig.device.counters.failures == 0)
  }

  /// A request waits only for its own server.
  @Test func aRequestWaits() throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server)
    try rig.expect(.write(sector: 0, pattern(8192)))
    try rig.expect(.flush)
    server.kill()
    try withBackground {
      usleep(100_000)
      try server.start()
    } during: {
      let outcome = try rig.expect(.read(sector: 0, bytes: 8192))
      #expect(firstDifference(outcome.answer, pattern(8192)) == nil)
    }
    try rig.expect(.flush, .ok, "nothing was lost")
  }

  /// A server that is paused for a while is not lost.
  @Test func aServerThatStandsStill() throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server)
    try rig.expect(.write(sector: 0, pattern(4096)))
    server.send(SIGSTOP)
    try withBackground {
      usleep(50_000)
      server.send(SIGCONT)
    } during: {
      _ = try rig.expect(.read(sector: 0, bytes: 4096))
    }
    try rig.expect(.flush)
  }

  /// The library mistakes inaccessible memory for a lost connection, and would do so on each new one.
  @Test(arguments: [BlockRequest.write(sector: 0, pattern(128 << 10, seed: 2)), .read(sector: 0, bytes: 128 << 10)])
  func memoryThatIsCutFailsItsOwnRequest(request: BlockRequest) throws {
    let server = try Self.lastingServer()
    var options = BlockDeviceOptions()
    (options.queueCount, options.threads) = (2, 1)
    var imageOptions = ImageOptions(path: try server.location.text)
    imageOptions.nbd = try server.options(timeout: 3600)
    let device = try BlockDevice(image: try ImageFile(imageOptions), options: options)
    // The ring is outside the truncated part, and so are all small buffers.
    let memory = try SharedMemory(regions: [(GuestAddress(0), 64 << 10), (GuestAddress(16 << 20), 256 << 10)])
    let file = try #require(memory.driver.regions.last)
    let whole = try memory.driver.allocate(file.size - 2 * DriverMemory.guardBytes)
    let victim = try HandQueue(device, 0, memory)
    memory.driver.release(whole)
    while try memory.driver.allocate(16).address < file.start {}
    let witness = try HandQueue(device, 1, SharedMemory(), beside: victim)
    try victim.start()
    try witness.start()
    #expect(try witness.perform(.write(sector: 0, pattern(128 << 10))).status == .ok)
    #expect(try witness.perform(.flush).status == .ok)
    try victim.submit(request)
    try #require(ftruncate(try #require(file.descriptor).rawValue, off_t(file.fileOffset)) == 0)
    victim.queue.publish()
    var events: [DeviceEvent] = []
    try waitUntil("the queue with the lost memory stops, and no other does") {
      let status = try witness.perform(.read(sector: 512, bytes: 512)).status
      #expect(status == .ok)
      events += victim.attended.takeEvents()
      return events.contains(.queueFailed(queue: 0, .memoryLost))
    }
    #expect(!events.contains(.queueFailed(queue: 1, .memoryLost)))
    #expect(victim.stop() != nil)
    let found = try witness.perform(.read(sector: 0, bytes: 128 << 10)).answer
    #expect(firstDifference(found, pattern(128 << 10)) == nil, "lost memory was not written")
    #expect(witness.stop() != nil)
  }

  // MARK: Lost writes

  enum Loss: String, CaseIterable, Sendable {
    case acknowledged, flushed, serverKeeps, nothingWritten
    var fails: Bool { self == .acknowledged }
  }

  /// Whether the next FLUSH reports that something may be lost; the one after it has nothing to report.
  @Test(arguments: Loss.allCases) func whatTheNextFlushSays(loss: Loss) throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, keepsWrites: loss == .serverKeeps)
    if loss != .nothingWritten { try rig.expect(.write(sector: 0, pattern(4096))) }
    if loss == .flushed { try rig.expect(.flush) }
    try rig.lose(server)
    try rig.expectFlush(fails: loss.fails)
    try rig.expect(.write(sector: 8, pattern(4096)))
    try rig.expect(.flush)
  }

  /// Each queue of a disk is told, because a flush covers all of them.
  @Test func everyQueueIsTold() throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, queues: 2)
    try rig.expect(.write(sector: 0, pattern(4096)))
    _ = try rig.perform(.read(sector: 0, bytes: 512), queue: 1)
    try rig.lose(server, queues: 2)
    for queue in [1, 0] { try rig.expectFlush(fails: true, queue: queue) }
  }

  // MARK: Writes of another process

  /// If the server is lost before the previous process has reported what is stable, that process's writes count as lost, too.
  @Test(arguments: [true, false]) func aLossDuringATakeover(isStable: Bool) throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server)
    rig.device.image.inheritExport()
    if !isStable { try rig.lose(server) }
    rig.device.continueExport(isStable: isStable, owing: nil)
    if isStable { try rig.lose(server) }
    try rig.expectFlush(fails: !isStable)
  }

  /// A queue that was told of a loss is not told again by the next process, and one that wrote nothing need not be told.
  @Test func whoHasToBeTold() throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, queues: 3)
    try rig.expect(.write(sector: 0, pattern(4096)))
    _ = try rig.perform(.read(sector: 0, bytes: 512), queue: 1)
    #expect(rig.device.owesWordOfLoss == nil && !rig.device.isExportStable)
    try rig.lose(server, queues: 2)
    #expect(rig.device.owesWordOfLoss == [true, true, true], "nobody has been told")
    try rig.expect(.flush, .ioError)
    #expect(rig.device.owesWordOfLoss == [false, true, false])
    #expect(try rig.perform(.flush, queue: 1).status == .ioError)
    #expect(rig.device.owesWordOfLoss == nil)
    try rig.expect(.flush)
    #expect(rig.device.isExportStable)
  }

  @Test(arguments: [([false, true], [false, true]), ([true], [true, true]), (nil, [false, false])] as [([Bool]?, [Bool])])
  func whatTheProcessBeforeOwed(owing: [Bool]?, fails: [Bool]) throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, queues: 2)
    rig.device.image.inheritExport()
    rig.device.continueExport(isStable: true, owing: owing)
    #expect(rig.device.owesWordOfLoss == (owing == nil ? nil : fails), "and the process after it would owe the same")
    for queue in 0..<2 { try rig.expectFlush(fails: fails[queue], queue: queue) }
  }

  // MARK: Servers that come back

  /// After the limit requests fail; when the server is back, the disk works again.
  @Test func aServerThatStaysAway() throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, timeout: 1)
    try rig.expect(.read(sector: 0, bytes: 4096))
    server.kill()
    try rig.expect(.read(sector: 0, bytes: 4096), .ioError)
    try rig.expect(.write(sector: 0, pattern(512)), .ioError)
    try rig.expect(.flush, .ioError)
    try server.start()
    try waitUntil("it is served again") { try rig.perform(.read(sector: 0, bytes: 4096)).status == .ok }
    try rig.expect(.write(sector: 0, pattern(512)))
    try rig.expect(.flush)
  }

  @Test(arguments: [
    ["memory", "8M"], ["memory", "32M"], ["--filter=readahead", "pattern", "16M"],
    [
      "--filter=blocksize-policy", "memory", "16M", "blocksize-minimum=4096", "blocksize-preferred=4096",
      "blocksize-maximum=32M",
    ],
    ["--filter=multi-conn", "memory", "16M", "multi-conn-mode=disable"],
  ]) func anotherDiskIsNotServed(words: [String]) throws {
    let server = try Self.lastingServer()
    let lasting = server.words
    let rig = try Self.rig(server, timeout: 1)
    try rig.expect(.write(sector: 0, pattern(4096)))
    try rig.expect(.flush)
    server.kill()
    server.words = Array(lasting.prefix(4)) + words
    try server.start()
    try rig.expect(.read(sector: 0, bytes: 4096), .ioError)
    server.kill()
    server.words = lasting
    try server.start()
    try rig.expectServedAgain()
  }

  /// A queue that is stopped while its server is away stops once its requests have failed.
  @Test func aStopEndsWithTheLimit() throws {
    let server = try Self.lastingServer()
    let rig = try Self.rig(server, timeout: 1)
    try rig.expect(.read(sector: 0, bytes: 4096))
    server.kill()
    try rig.client.shutDown()
  }
}
