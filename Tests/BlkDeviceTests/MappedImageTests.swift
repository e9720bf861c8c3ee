/// Images that are mapped into memory: holes stay holes, cached knowledge about windows is dropped when it has to be, and
/// files that cannot be mapped are served by another engine.
import CLinux
import Foundation
import GuestDriver
import SystemPackage
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct MappedImageTests {
  private static let size = 4 << 20
  private static let folder = "/dev/shm"
  private static let window = PopulatedWindows.windowSize

  private static func rig(_ change: (inout RigOptions) -> Void = { _ in }) throws -> Rig {
    var options = RigOptions(engine: .mapped, folder: folder, size: size)
    change(&options)
    return try Rig(options)
  }

  private static func fill(_ path: String, at offset: Int = 0, _ bytes: [UInt8]) throws {
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.seek(toOffset: UInt64(offset))
    try handle.write(contentsOf: bytes)
  }

  /// Reads the first bytes of the disk, in requests smaller than a window: a request at the edge of the data must not hide how
  /// the others are handled.
  private static func read(_ rig: Rig, _ count: Int, queue: Int = 0) throws -> [UInt8] {
    var answer: [UInt8] = []
    while answer.count < count {
      let outcome = try rig.perform(.read(sector: UInt64(answer.count / 512), bytes: 16 << 10), queue: queue)
      try #require(outcome.status == .ok)
      answer += outcome.answer
    }
    return answer
  }

  // MARK: Holes

  @Test(arguments: [false, true]) func readingAHoleDoesNotFillIt(isReadOnly: Bool) throws {
    let rig = try Self.rig { $0.isReadOnly = isReadOnly }
    // Some data between the holes, so that windows of all kinds are read.
    try Self.fill(rig.path, at: 5 * Self.window, pattern(Self.window))
    try Self.fill(rig.path, at: 9 * Self.window + 8192, pattern(4096))
    let before = try rig.scratch.allocated(rig.path)
    for _ in 0..<2 {
      let answer = try Self.read(rig, Self.size)
      let expected = try rig.contents(at: 0, count: Self.size)
      #expect(firstDifference(answer, expected) == nil)
    }
    #expect(try rig.scratch.allocated(rig.path) == before)
  }

  /// One block in every second page: a write allocates the page of its hole, and no other.
  @Test func writingIntoAHoleFillsNoOther() throws {
    let rig = try Self.rig()
    for page in stride(from: 0, to: 64, by: 2) { try rig.expect(.write(sector: UInt64(page) * 8, pattern(512, seed: page))) }
    #expect(try rig.scratch.allocated(rig.path) == 32 * 4096)
    for page in stride(from: 0, to: 64, by: 2) {
      let expected = pattern(512, seed: page) + zeroes(8192 - 512)
      #expect(try firstDifference(rig.expect(.read(sector: UInt64(page) * 8, bytes: 8192)).answer, expected) == nil)
      #expect(try firstDifference(rig.contents(at: page * 4096, count: 8192), expected) == nil)
    }
    #expect(try rig.scratch.allocated(rig.path) == 32 * 4096)
  }

  /// The driver's view, the file's content, and its allocated space, from one state of a range to the next.
  @Test func discardAndBack() throws {
    let rig = try Self.rig()
    let range = BlockRange(sector: 0, sectors: 2048)
    var expected = pattern(1 << 20)
    for round in 0..<3 {
      expected = pattern(1 << 20, seed: round)
      try rig.expect(.write(sector: 0, expected))
      #expect(try firstDifference(Self.read(rig, 1 << 20), expected) == nil)
      #expect(try rig.scratch.allocated(rig.path) == 1 << 20)
      try rig.expect(round == 1 ? .writeZeroes([BlockRange(sector: 0, sectors: 2048, flags: 1)]) : .discard([range]))
      #expect(try firstDifference(Self.read(rig, 1 << 20), zeroes(1 << 20)) == nil)
      #expect(try rig.scratch.allocated(rig.path) == 0)
    }
    try rig.expect(.writeZeroes([range]))
    #expect(try firstDifference(Self.read(rig, 1 << 20), zeroes(1 << 20)) == nil)
    #expect(try rig.scratch.allocated(rig.path) == 1 << 20)
  }

  /// A hole that one queue punches is seen by another queue.
  @Test(arguments: [1, 2]) func queuesShareWhatIsKnown(threads: Int) throws {
    let rig = try Self.rig {
      $0.device.queueCount = 2
      $0.device.threads = threads
    }
    try rig.expect(.write(sector: 0, pattern(1 << 20)))
    #expect(try firstDifference(Self.read(rig, 1 << 20, queue: 1), pattern(1 << 20)) == nil)
    try rig.expect(.discard([BlockRange(sector: 512, sectors: 512)]))
    let answer = try Self.read(rig, 1 << 20, queue: 1)
    #expect(firstDifference(answer, pattern(256 << 10) + zeroes(256 << 10) + pattern(1 << 20)[(512 << 10)...]) == nil)
    #expect(try rig.scratch.allocated(rig.path) == (1 << 20) - (256 << 10))
  }

  // MARK: System calls

  /// For data, each window costs one look-up and nothing after that; for holes, each request costs a system call.
  @Test func onlyHolesCostSystemCalls() throws {
    let scratch = try Scratch(in: Self.folder)
    let path = try scratch.image(size: Self.size)
    // Windows are aligned in the address space, not in the file: the last window of the data may end in a hole.
    try Self.fill(path, pattern((1 << 20) + Self.window))
    let image = try MappedImage(ImageFile(ImageOptions(path: path)))
    let windows = try #require(image.windows)
    #expect(!windows.isData(0, 1 << 20))
    #expect(windows.look(0, 1 << 20) == .data)
    #expect(windows.isData(0, 1 << 20))
    #expect(windows.look(2 << 20, 1 << 20) == .sparse)
    #expect(windows.look(0, 2 << 20) == .sparse)
    #expect(windows.isData(0, 1 << 20))
    // Once all that was missing has been written, it is data.
    let start = 2 << 20
    for page in 0..<32 {
      let offset = start + page * 4096
      #expect(windows.look(UInt64(offset), 4096) == .sparse)
      try Self.fill(path, at: offset, pattern(4096))
      windows.filled(UInt64(offset), 4096)
    }
    #expect(windows.look(UInt64(start + Self.window), 1) == .data)
    windows.forget(0, 4096)
    #expect(!windows.isData(0, 1))
    #expect(windows.isData(UInt64(2 * Self.window), 1))
  }

  /// A look-up during which another thread punches a hole must not keep its result.
  @Test func whatIsForgottenMeanwhileStaysForgotten() async throws {
    let scratch = try Scratch(in: Self.folder)
    let path = try scratch.image(size: Self.size)
    try Self.fill(path, pattern(Self.size))
    let file = try ImageFile(ImageOptions(path: path))
    let image = try MappedImage(file)
    let windows = try #require(image.windows)
    let descriptor = file.descriptor
    let length = Self.window
    let data = pattern(length)
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<2 {
        group.addTask {
          for _ in 0..<2000 { _ = windows.look(0, UInt64(length)) }
        }
      }
      group.addTask {
        for _ in 0..<500 {
          _ = unsafe pwrite(descriptor, data, length, 0)
          windows.filled(0, UInt64(length))
          _ = fallocate(descriptor, IOOperation.Kind.punchHole.allocationMode, 0, off_t(length))
          windows.forget(0, UInt64(length))
          // Only a look-up that began earlier may have filled the hole again, and then there is none.
          if windows.isData(0, UInt64(length)) { #expect((try? Scratch.allocated(path)) == Self.size) }
        }
      }
    }
    withExtendedLifetime(image) {}
  }

  // MARK: Truncated files

  /// The file is truncated before anything was read: no fault occurs, and the truncation is noticed all the same.
  @Test(arguments: [0, 1 << 20]) func cutBeforeTheFirstRequest(length: Int) throws {
    let rig = try Self.rig()
    try Self.fill(rig.path, pattern(Self.size))
    try #require(unsafe truncate(rig.path, off_t(length)) == 0)
    let request = BlockRequest.read(sector: 2048 * 2, bytes: 64 << 10)
    for _ in 0..<2 { try rig.expect(request, .ioError) }
    try rig.expect(.write(sector: 4096, pattern(4096)), .ioError)
  }

  /// A sparse window ends with the file. Reads of it are system calls, and these return less.
  @Test func cutInsideAHole() throws {
    let rig = try Self.rig()
    let request = BlockRequest.read(sector: 2048, bytes: 64 << 10)
    #expect(try rig.expect(request).answer == zeroes(64 << 10))
    try #require(unsafe truncate(rig.path, (1 << 20) + 512) == 0)
    for _ in 0..<2 { try rig.expect(request, .ioError) }
  }

  /// A copy beyond a new end in the same page causes no fault, and its data is lost. The guest is told before it
  /// relies on it.
  @Test func whatWasWrittenBehindTheEndOfAPageIsNotStable() throws {
    let rig = try Self.rig()
    try Self.fill(rig.path, pattern(Self.size))
    try rig.expect(.write(sector: 2048, pattern(512)), .ok)
    try rig.expect(.flush, .ok)
    try #require(unsafe truncate(rig.path, (1 << 20) + 512) == 0)
    // Longer than a known length is relied on.
    usleep(1000)
    try rig.expect(.write(sector: 2048 + 4, pattern(512)), .ok)
    try rig.expect(.flush, .ioError)
    // From then on it behaves as with every engine.
    try rig.expect(.write(sector: 2048 + 4, pattern(512)), .ioError)
    try rig.expect(.write(sector: 2048, pattern(512)), .ok)
  }

  /// If the file ends at a page boundary, every lost byte causes a fault.
  @Test func aFileThatEndsWithAPageIsStableUpToThere() throws {
    let rig = try Self.rig()
    try Self.fill(rig.path, pattern(Self.size))
    try rig.expect(.flush, .ok)
    try #require(unsafe truncate(rig.path, 1 << 20) == 0)
    usleep(1000)
    try rig.expect(.write(sector: 2040, pattern(512)), .ok)
    try rig.expect(.flush, .ok)
    try rig.expect(.write(sector: 2048, pattern(512)), .ioError)
  }

  /// One queue reaches the end; the others stop trusting the mapping, too, and need not fail for that.
  @Test func aCutIsKnownToAllQueues() throws {
    let rig = try Self.rig { $0.device.queueCount = 2 }
    try Self.fill(rig.path, pattern(Self.size))
    for queue in 0..<2 { #expect(try rig.perform(.read(sector: 0, bytes: 1 << 20), queue: queue).status == .ok) }
    try #require(unsafe truncate(rig.path, 4096) == 0)
    #expect(try rig.perform(.write(sector: 1024, pattern(4096)), queue: 0).status == .ioError)
    #expect(try rig.perform(.write(sector: 1024, pattern(4096)), queue: 1).status == .ioError)
    #expect(try rig.perform(.write(sector: 0, pattern(4096)), queue: 1).status == .ok)
    #expect(try rig.contents(at: 0, count: 4096) == pattern(4096))
  }

  // MARK: Choice

  @Test func automaticallyForFilesInMemory() throws {
    for medium in Medium.allCases {
      let scratch = try Scratch(in: medium.folder)
      let device = try BlockDevice(image: ImageFile(ImageOptions(path: scratch.image())), options: .init())
      #expect(device.engine == (medium == .memory ? .mapped : .uring), "\(device.engineReason)")
      #expect(medium == .disk || device.engineReason.contains("mapping"))
      #expect(device.engineWarning == nil)
    }
  }

  /// Larger than the address space.
  @Test func whatCannotBeMappedIsServedOtherwise() throws {
    let scratch = try Scratch(in: Self.folder)
    let size = 200 << 40
    let path = try scratch.image(size: size)
    let image = try ImageFile(ImageOptions(path: path))
    var options = BlockDeviceOptions()
    options.engine = .mapped
    #expect(throws: EngineError.cannotMap(path: path, .noMemory)) { try BlockDevice(image: image, options: options) }
    let rig = try Rig(RigOptions(engine: .auto), image: path, isLocked: false)
    #expect(rig.device.engine == .sync)
    #expect(rig.device.engineWarning?.contains("cannot be mapped") == true)
    try rig.expect(.write(sector: UInt64(size) / 512 - 8, pattern(4096)))
    #expect(try rig.expect(.read(sector: UInt64(size) / 512 - 8, bytes: 4096)).answer == pattern(4096))
  }

  /// The share of a cache that one thread may fill, from the kernel's text for its size.
  @Test(
    arguments: [
      ("32768K\n", 32 << 20), ("1M", 1 << 20), ("2G\n", 2 << 30), ("", nil), ("\n", nil), ("K", nil), ("32768", nil),
      ("0K", nil), ("-1K", nil), ("99999999999999999999K", nil), ("18014398509481985K", nil),
    ] as [(String, UInt64?)]) func theKernelsWordForTheSizeOfACache(text: String, size: UInt64?)
  {
    #expect(CopyKernel.cacheSize(of: text) == size)
  }
}
