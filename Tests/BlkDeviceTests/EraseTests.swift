/// SECURE_ERASE (virtio 5.2.6): the range is overwritten, and the old data is gone before the request is answered.
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct EraseTests {
  private static func options(_ engine: EngineKind = .auto, _ medium: Medium = .disk) -> RigOptions {
    var options = RigOptions(engine: engine, folder: medium.folder, size: 8 << 20)
    options.device.requestedFeatures = .blockSecureErase
    return options
  }

  @Test(arguments: [EngineKind.auto, .uring, .aio, .sync, .threads, .mapped], Medium.allCases)
  func whatWasThereIsOverwritten(engine: EngineKind, medium: Medium) throws {
    let rig = try Rig(Self.options(engine, medium))
    let data = pattern(4 << 20)
    try rig.expect(.write(sector: 0, data))
    // Two ranges, one of them longer than a single write, and a hole after the data.
    try rig.expect(
      .secureErase([
        BlockRange(sector: 16, sectors: 8), BlockRange(sector: 1024, sectors: 5 << 11),
        BlockRange(sector: 15 << 10, sectors: 64),
      ]))
    var expected = data + zeroes(4 << 20)
    for range in [(16 * 512)..<(24 * 512), (1024 * 512)..<(1024 * 512 + 5 << 20)] {
      expected.replaceSubrange(range, with: zeroes(range.count))
    }
    #expect(try firstDifference(rig.contents(at: 0, count: 8 << 20), expected) == nil)
    // Written, not punched: the image keeps its space, and the hole is filled.
    #expect(try rig.scratch.allocated(rig.path) >= 1024 * 512 + 5 << 20)
    #expect(rig.device.counters.failures == 0)
  }

  /// The file system is never asked for a cheaper way to zero, and the flush follows the last write.
  @Test func itIsWrittenAndFlushed() throws {
    let script = try Script()
    var options = Self.options()
    options.script = script
    let rig = try Rig(options)
    try rig.expect(.secureErase([BlockRange(sector: 8, sectors: 8), BlockRange(sector: 4096, sectors: 4096)]))
    let records = script.records
    #expect(records.map(\.kind).dropLast().allSatisfy { $0 == .write })
    #expect(records.last?.kind == .flush)
    #expect(records.dropLast().reduce(0) { $0 + $1.length } == 4096 + 4096 * 512)
  }

  /// A failed write or flush fails the request.
  @Test(arguments: [0, 1, 2]) func aFailureIsTold(at place: Int) throws {
    let script = try Script((0..<place).map { _ in .whole } + [.result(-5)])
    var options = Self.options()
    options.script = script
    let rig = try Rig(options)
    try rig.expect(.secureErase([BlockRange(sector: 8, sectors: 8), BlockRange(sector: 64, sectors: 8)]), .ioError)
  }

  @Test func whatIsNoErasureIsRefused() throws {
    var options = Self.options()
    options.device.configuration[.eraseAlignment] = 8
    let rig = try Rig(options)
    let data = pattern(64 << 10)
    try rig.expect(.write(sector: 0, data))
    let end = UInt64(options.size / 512)
    // Flags first, whatever the range (virtio 5.2.6.2).
    for flags: UInt32 in [1, 2, 1 << 31] {
      try rig.expect(
        .secureErase([BlockRange(sector: 0, sectors: 8), BlockRange(sector: end, sectors: 8, flags: flags)]), .unsupported)
    }
    for range in [
      BlockRange(sector: 4, sectors: 8), BlockRange(sector: 0, sectors: 12), BlockRange(sector: end, sectors: 8),
      BlockRange(sector: end - 8, sectors: 16), BlockRange(sector: .max - 7, sectors: 8),
    ] {
      // The first range is valid, and still is not erased: a request is validated as a whole.
      try rig.expect(.secureErase([BlockRange(sector: 0, sectors: 8), range]), .ioError)
    }
    for length in [0, 8, 15, 17] {
      try rig.expect(BlockRequest(type: .secureErase, payload: Array(repeating: 0, count: length)), .ioError)
    }
    #expect(try firstDifference(rig.contents(at: 0, count: data.count), data) == nil)
  }

  @Test func whoDidNotAskForItHasNone() throws {
    let rig = try Rig()
    #expect(!rig.client.session.offered.contains(BlockFeature.secureErase))
    try rig.expect(.secureErase([BlockRange(sector: 0, sectors: 8)]), .unsupported)
    // A read-only disk offers it to no driver.
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(), isReadOnly: true))
    var options = BlockDeviceOptions()
    options.requestedFeatures = .blockSecureErase
    #expect(try !BlockDevice(image: image, options: options).features.contains(.blockSecureErase))
  }

  /// A byte limit counts it like a write.
  @Test func aLimitHoldsForIt() throws {
    var options = Self.options()
    options.device.limits.writeBytes = RateLimit(perSecond: 64 << 20, burst: 1 << 20)
    let rig = try Rig(options)
    // All at once: a request submitted after a slow one would find that enough time has passed already.
    let queue = rig.client.queues[0]
    for _ in 0..<4 { _ = try #require(try queue.submit(.secureErase([BlockRange(sector: 0, sectors: 4096)]))) }
    queue.publish()
    var erased = 0
    try waitUntil("all are erased") {
      while let outcome = try queue.reap() {
        #expect(outcome.status == .ok)
        erased += 1
      }
      return erased == 4
    }
    #expect(rig.device.counters.throttled > 0)
  }
}
