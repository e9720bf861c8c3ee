/// Alignment for direct I/O: what the system reports, what is assumed if it reports nothing, and media that refuse what they
/// report to accept.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct DirectAlignmentTests {
  private static func options(
    _ path: String, _ answer: DirectAlignment.Answer, direct: ImageOptions.Direct = .auto, blockSize: Int = 512
  ) -> ImageOptions {
    var options = ImageOptions(path: path, direct: direct, logicalBlockSize: blockSize)
    options.directAnswer = answer
    return options
  }

  /// Not 512, although a read of a hole in an empty file accepts that: it never reaches the medium.
  @Test func withoutAnAnswerAPageIsAssumed() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let large = try ImageFile(Self.options(path, .unknown, blockSize: 4096))
    #expect(large.isDirect)
    #expect(large.memoryAlignment == 4096)
    #expect(large.description.offsetAlignment == 4096)
  }

  @Test func withoutAnAnswerSmallBlocksGoThroughThePageCache() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    #expect(try !ImageFile(Self.options(path, .unknown)).isDirect)
    #expect(throws: ImageError.directNeedsLargerBlocks(path: path, alignment: 4096, blockSize: 512)) {
      _ = try ImageFile(Self.options(path, .unknown, direct: .on))
    }
  }

  @Test func noDirectIOIsSaid() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    #expect(try !ImageFile(Self.options(path, .impossible)).isDirect)
    #expect(throws: ImageError.noDirect(path: path)) { _ = try ImageFile(Self.options(path, .impossible, direct: .on)) }
  }

  /// A medium that refuses buffers that it reports to accept: simulated on a real disk, with misaligned addresses.
  @Test(.enabled(if: Host.refusesOddBuffers, "direct I/O takes any buffer here")) func aRefusalInTheTrialAsksForPages() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.write(contentsOf: Data(pattern(65536)))
    try handle.synchronize()
    let image = try ImageFile(Self.options(path, .told(DirectAlignment(memory: 1, offset: 512))))
    #expect(image.isDirect)
    #expect(image.memoryAlignment == 4096)
  }

  /// The same with a hole where the file begins: its data is tried, not the hole.
  @Test(.enabled(if: Host.refusesOddBuffers, "direct I/O takes any buffer here")) func theTrialReadsData() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.seek(toOffset: 128 << 10)
    try handle.write(contentsOf: Data(pattern(65536)))
    try handle.synchronize()
    let image = try ImageFile(Self.options(path, .told(DirectAlignment(memory: 1, offset: 512))))
    #expect(image.memoryAlignment == 4096)
  }

  /// Without any data there is nothing to try. A medium whose blocks are pages, like zram, may write whole pages whatever it
  /// reports; one with smaller blocks is believed.
  @Test(arguments: [(offset: 4096, expected: 4096), (offset: 512, expected: 512)])
  func withoutDataPagesAreAskedForWhereBlocksArePages(offset: Int, expected: Int) throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let image = try ImageFile(
      Self.options(path, .told(DirectAlignment(memory: 512, offset: offset)), direct: .on, blockSize: 4096))
    #expect(image.memoryAlignment == expected)
  }

  /// What the system reports here is true of an ordinary disk, and is used unchanged.
  @Test func anHonestMediumKeepsItsAlignment() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.write(contentsOf: Data(pattern(65536)))
    try handle.synchronize()
    let descriptor = unsafe open(path, O_RDONLY | clinux_o_direct)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    guard unsafe clinux_direct_io_alignment(descriptor, &memory, &offset) == 1, memory > 0, offset <= 512 else { return }
    let image = try ImageFile(ImageOptions(path: path))
    #expect(image.isDirect)
    #expect(image.memoryAlignment == Int(memory))
  }

  /// The trial only reads: the file stays as it was, holes included.
  @Test func theTrialChangesNothing() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    _ = try ImageFile(ImageOptions(path: path))
    #expect(try scratch.allocated(path) == 0)
  }

  @Test(.enabled(if: Host.hasLoop, "loop devices are not possible here")) func aDevicesOwnBlockIsKnownWithoutAnAnswer() throws {
    let loop = try LoopDevice(size: 4 << 20, "--sector-size", "512")
    let image = try ImageFile(Self.options(loop.path, .unknown))
    #expect(image.isDirect)
    #expect(image.description.offsetAlignment == 512)
    #expect(image.memoryAlignment == 4096)
  }

  /// zram reports 512 as its alignment, and then writes whole pages, overwriting what lies before a buffer.
  @Test(.enabled(if: Host.hasZram, "zram devices are not possible here"), arguments: [EngineKind.uring, .aio, .sync, .threads])
  func buffersThatAMediumWritesAroundArePages(engine: EngineKind) throws {
    let zram = try ZramDevice(size: 8 << 20)
    do {
      let image = try ImageFile(ImageOptions(path: zram.path, direct: .on, logicalBlockSize: 4096))
      #expect(image.memoryAlignment == 4096)
    }
    let rig = try Rig(RigOptions(engine: engine, direct: .on, blockSize: 4096), image: zram.path)
    // Buffers aligned to 512, and not at all: the driver puts canaries around each.
    for alignment in [512, 1] {
      let data = pattern(32 << 10, seed: alignment)
      let write = BlockRequest.write(sector: 64, data)
      try rig.expect(write, framing: .classic(write, alignment: alignment))
      let read = BlockRequest.read(sector: 64, bytes: data.count)
      let answer = try rig.expect(read, framing: .classic(read, alignment: alignment)).answer
      #expect(firstDifference(answer, data) == nil)
    }
  }
}
