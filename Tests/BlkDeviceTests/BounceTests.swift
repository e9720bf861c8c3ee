/// Direct I/O with buffers that it refuses: only those go through an aligned copy.
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.refusesOddBuffers, "direct I/O takes any buffer in the temporary folder"))
struct BounceTests {
  static let engines: [EngineKind] = [.uring, .aio, .sync, .threads]
  static let size = 4 << 20
  /// Less than one copy, more than one, and exact multiples of one.
  static let lengths = [512, 100 << 10, 256 << 10, (256 << 10) + 512, 700 << 10]

  struct Shape: Sendable, CustomTestStringConvertible {
    var name: String
    /// Where the data is cut, in bytes from its beginning.
    var cuts: [Int]
    var testDescription: String { name }
  }

  static let shapes = [
    Shape(name: "one piece", cuts: []),
    Shape(name: "odd pieces", cuts: [1, 2, 513, 4099]),
    Shape(name: "status in the same piece", cuts: [-1]),
    // The first copy holds exactly the first piece; the rest is aligned.
    Shape(name: "as long as a copy", cuts: [256 << 10]),
  ]

  @Test(arguments: engines, shapes) func oddBuffersOfAnySize(engine: EngineKind, shape: Shape) throws {
    let rig = try Rig(RigOptions(engine: engine, size: Self.size, direct: .auto))
    for (number, length) in Self.lengths.enumerated() {
      let data = pattern(length, seed: number)
      let merges = shape.cuts == [-1]
      let cuts = merges ? [] : shape.cuts.filter { $0 < length }
      let write = BlockRequest.write(sector: 3, data)
      try rig.expect(write, framing: Framing(readableCuts: [16] + cuts.map { $0 + 16 }, writableCuts: []))
      #expect(try firstDifference(rig.contents(at: 3 * 512, count: length), data) == nil)
      let read = BlockRequest.read(sector: 3, bytes: length)
      let outcome = try rig.expect(read, framing: Framing(readableCuts: [], writableCuts: cuts + (merges ? [] : [length])))
      #expect(firstDifference(outcome.answer, data) == nil)
    }
    #expect(rig.device.counters.bounces > 0)
    #expect(rig.device.counters.failures == 0)
  }

  /// The first piece is misaligned and as long as a copy; everything after it could be transferred without one.
  @Test(arguments: engines, [false, true]) func oddBeginningWithAnAlignedRest(engine: EngineKind, isRead: Bool) throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: Self.size)
    let image = try ImageFile(ImageOptions(path: path))
    var options = BlockDeviceOptions()
    options.engine = engine
    let device = try BlockDevice(image: image, options: options)
    let memory = try SharedMemory(size: 8 << 20)
    let queue = try HandQueue(device, 0, memory)
    try queue.start()
    let first = 256 << 10
    let rest = 512 << 10
    let data = pattern(first + rest)
    // One at a misaligned address, one at an aligned address.
    let odd = try memory.driver.allocate(first + 8192, alignment: 4096)
    let aligned = try memory.driver.allocate(rest, alignment: 4096)
    let head = try memory.driver.allocate(16)
    let status = try memory.driver.allocate(1)
    status.fill(0xff)
    head.store([UInt8(isRead ? 0 : 1)] + zeroes(15))
    if isRead {
      try Self.write(data, to: path)
    } else {
      odd.store(data[..<first], at: 1)
      aligned.store(data[first...])
    }
    let pieces = [
      ChainPiece(head.address, length: 16, deviceWrites: false),
      ChainPiece(GuestAddress(odd.address.rawValue + 1), length: UInt32(first), deviceWrites: isRead),
      ChainPiece(aligned.address, length: UInt32(rest), deviceWrites: isRead),
      ChainPiece(status.address, length: 1, deviceWrites: true),
    ]
    #expect(queue.queue.ring.add(pieces.span, token: 1) != nil)
    queue.queue.ring.publish()
    try waitUntil("it is answered") { queue.usedIndex == 1 }
    #expect(try queue.queue.ring.reap()?.length == UInt32(isRead ? data.count + 1 : 1))
    #expect(status[0] == 0)
    if isRead {
      #expect(firstDifference(odd.bytes(1..<(first + 1)), Array(data[..<first])) == nil)
      #expect(firstDifference(aligned.bytes, Array(data[first...])) == nil)
    } else {
      #expect(try firstDifference(scratch.contents(path, at: 0, count: data.count), data) == nil)
    }
    #expect(device.counters.bounces == 1)
    #expect(memory.driver.damage(around: odd) == nil && memory.driver.damage(around: aligned) == nil)
    #expect(queue.stop() != nil)
  }

  private static func write(_ bytes: [UInt8], to path: String) throws {
    let rig = try Rig(RigOptions(engine: .sync), image: path, isLocked: false)
    for start in stride(from: 0, to: bytes.count, by: 256 << 10) {
      try rig.expect(.write(sector: UInt64(start / 512), Array(bytes[start..<min(start + (256 << 10), bytes.count)])))
    }
    try rig.expect(.flush)
  }

  @Test(arguments: engines) func alignedBuffersNeverBounce(engine: EngineKind) throws {
    let rig = try Rig(RigOptions(engine: engine, size: Self.size, direct: .auto))
    let data = pattern(1 << 20)
    for length in [512, 4096, 1 << 20] {
      let write = BlockRequest.write(sector: 8, Array(data[..<length]))
      try rig.expect(write, framing: .classic(write, alignment: 4096))
      let read = BlockRequest.read(sector: 8, bytes: length)
      let answer = try rig.expect(read, framing: .classic(read, alignment: 4096)).answer
      #expect(firstDifference(answer, Array(data[..<length])) == nil)
    }
    #expect(rig.device.counters.bounces == 0)
  }

  /// Through the page cache no buffer needs a copy.
  @Test func withoutDirectNothingBounces() throws {
    let rig = try Rig(RigOptions(engine: .sync, direct: .off))
    let write = BlockRequest.write(sector: 8, pattern(8192))
    try rig.expect(write, framing: .classic(write, alignment: 1))
    #expect(rig.device.counters.bounces == 0)
  }
}
