/// Images in the page cache: cached pages are copied, the others are read through io_uring, and evicted pages are noticed.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct CachedImageTests {
  private static let size = 4 << 20
  private static let block = 4096

  /// An engine without a worker, on a disk whose bytes tell where they belong.
  @safe
  private final class Bed {
    let scratch: Scratch
    let file: ImageFile
    let image: MappedImage
    let data = pattern(size)
    private let mailbox: OwnedDescriptor
    private var engine: CachedEngine
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
    private let segments = UnsafeMutablePointer<MemorySegment>.allocate(capacity: size / block)

    init() throws {
      scratch = try Scratch()
      let path = try scratch.image(size: size)
      let handle = try #require(FileHandle(forWritingAtPath: path))
      try handle.write(contentsOf: data)
      try handle.synchronize()
      file = try ImageFile(ImageOptions(path: path, direct: .off))
      image = try MappedImage(file, isCache: true)
      mailbox = try .eventCounter()
      engine = try CachedEngine(
        image, descriptor: file.descriptor, mailbox: mailbox.rawValue, depth: size / block, setup: UringSetup())
    }

    deinit {
      unsafe buffer.deallocate()
      unsafe segments.deallocate()
    }

    var windows: PopulatedWindows { get throws { try #require(image.windows) } }

    /// Reads blocks, all at once, and checks the data.
    /// - Parameter mayWait: whether the reads may wait for the medium.
    func read(_ blocks: Range<Int>, mayWait: Bool, _ place: SourceLocation = #_sourceLocation) throws {
      let bytes = (start: blocks.lowerBound * block, count: blocks.count * block)
      unsafe (buffer + bytes.start).initializeMemory(as: UInt8.self, repeating: 0, count: bytes.count)
      for number in blocks {
        unsafe (segments + number).initialize(to: MemorySegment(base: buffer + number * block, count: block))
        let operation = unsafe IOOperation(
          kind: .read, offset: UInt64(number * block), length: UInt64(block), segments: segments + number, segmentCount: 1)
        guard case .pending = engine.start(operation, tag: UInt32(number)) else {
          Issue.record("a read is not finished in place", sourceLocation: place)
          return
        }
      }
      var open = Set(blocks)
      while !open.isEmpty {
        while let event = engine.nextEvent() {
          guard case .completion(let tag, let result) = event else { continue }
          #expect(result == Int32(block), sourceLocation: place)
          #expect(open.remove(Int(tag)) != nil, sourceLocation: place)
        }
        if open.isEmpty || engine.hasFinished { continue }
        try #require(mayWait, sourceLocation: place)
        engine.wait(nanoseconds: nil)
      }
      let read = unsafe Array(UnsafeRawBufferPointer(start: buffer + bytes.start, count: bytes.count))
      #expect(firstDifference(read, Array(data[bytes.start..<bytes.start + bytes.count])) == nil, sourceLocation: place)
    }

    /// Begins to read the first blocks, and abandons the reads.
    /// - Returns: whether the engine has completions left, and how many events it still reports.
    func giveUp(_ count: Int) -> (hasFinished: Bool, events: Int) {
      for number in 0..<count {
        unsafe (segments + number).initialize(to: MemorySegment(base: buffer + number * block, count: block))
        _ = unsafe engine.start(
          IOOperation(
            kind: .read, offset: UInt64(number * block), length: UInt64(block), segments: segments + number, segmentCount: 1),
          tag: UInt32(number))
      }
      // Some are finished, and one of those is reported.
      _ = engine.nextEvent()
      engine.abandon()
      var events = 0
      while engine.nextEvent() != nil { events += 1 }
      return (engine.hasFinished, events)
    }

    /// Writes the first block. - Returns: whether threads were awaited before, meanwhile and afterwards.
    func write() throws -> [Bool] {
      var answers = [engine.awaitsThreads]
      unsafe segments.initialize(to: MemorySegment(base: buffer, count: block))
      _ = unsafe engine.start(
        IOOperation(kind: .write, length: UInt64(block), segments: segments, segmentCount: 1), tag: 0)
      answers.append(engine.awaitsThreads)
      while true {
        engine.wait(nanoseconds: nil)
        while let event = engine.nextEvent() {
          guard case .completion(_, let result) = event else { continue }
          #expect(result == Int32(block))
          return answers + [engine.awaitsThreads]
        }
      }
    }

    /// Makes the kernel leave mapped pages where they are: otherwise it may reclaim some at any time.
    func keepPages() { _ = unsafe mlock2(image.mapping.base, size, UInt32(MLOCK_ONFAULT)) }

    /// Makes the kernel reclaim pages. - Returns: how many of the image's pages are still there.
    func evict() throws -> Int {
      try #require(unsafe madvise(image.mapping.base, size, 21) == 0)  // MADV_PAGEOUT
      try #require(posix_fadvise(file.descriptor, 0, 0, POSIX_FADV_DONTNEED) == 0)
      var there = [UInt8](repeating: 0, count: size / 4096)
      try #require(unsafe mincore(image.mapping.base, size, &there) == 0)
      return there.count { $0 & 1 != 0 }
    }
  }

  /// A read that went through the ring would have to be waited for.
  @Test func whatIsThereIsCopied() throws {
    let bed = try Bed()
    bed.keepPages()
    #expect(try !bed.windows.isData(0, 1))
    try bed.read(0..<1024, mayWait: false)
    #expect(try bed.windows.isData(0, UInt64(Self.size)))
    for start in stride(from: 0, to: 1024, by: 64) { try bed.read(start..<start + 64, mayWait: false) }
  }

  /// A request that was answered because the ring was lost is not answered again.
  @Test(arguments: [1, 2, 64]) func whatWasGivenUpIsNotReported(count: Int) throws {
    let bed = try Bed()
    bed.keepPages()
    try bed.read(0..<1024, mayWait: false)
    let left = bed.giveUp(count)
    #expect(!left.hasFinished && left.events == 0, "\(left)")
    try bed.read(0..<64, mayWait: false)
  }

  @Test func whatIsNotThereComesThroughTheRing() throws {
    let bed = try Bed()
    try #require(bed.evict() == 0)
    try bed.read(0..<1024, mayWait: true)
    #expect(try !bed.windows.isData(0, UInt64(Self.size)))
    bed.keepPages()
    // That read all of it into the cache, so now it is copied.
    try bed.read(0..<1024, mayWait: false)
    #expect(try bed.windows.isData(0, UInt64(Self.size)))
  }

  /// Pages are reclaimed while they are known to be cached: the data read is right, and nothing is known to be cached any more.
  @Test(arguments: [1, 4, 1024]) func lostPagesAreNoticed(depth: Int) throws {
    let bed = try Bed()
    try bed.read(0..<1024, mayWait: false)
    #expect(try bed.windows.isData(0, UInt64(Self.size)))
    try #require(bed.evict() < 512)
    usleep(2000)
    for start in stride(from: 0, to: 1024, by: depth) { try bed.read(start..<start + depth, mayWait: true) }
    #expect(try !bed.windows.isData(0, UInt64(Self.size)))
    try bed.read(0..<1024, mayWait: true)
    try bed.read(0..<1024, mayWait: false)
  }

  /// A truncated file is not trusted any more: what is left of it is read with system calls.
  @Test func aCutFileIsReadByCalls() throws {
    let bed = try Bed()
    try bed.read(0..<1024, mayWait: false)
    try #require(unsafe truncate(bed.file.path, off_t(Self.size / 2)) == 0)
    try bed.read(0..<512, mayWait: true)
  }

  /// Kernel workers write to the page cache, and may have to run on the CPU of a queue that polls. A device needs none.
  @Test func writesAwaitThreads() throws {
    let bed = try Bed()
    #expect(try bed.write() == [false, true, false])
    let mailbox = try OwnedDescriptor.eventCounter()
    var ring = try UringEngine(
      descriptor: bed.file.descriptor, isSlow: true, mailbox: mailbox.rawValue, depth: 1, setup: UringSetup())
    _ = unsafe ring.start(IOOperation(kind: .flush), tag: 0)
    let isAwaiting = ring.awaitsThreads
    #expect(!isAwaiting)
  }

  @Test func whatPunchesIsForgotten() throws {
    let rig = try Rig(RigOptions(engine: .cached, size: Self.size))
    for round in 0..<3 {
      try rig.expect(.write(sector: 0, pattern(1 << 20, seed: round)))
      #expect(try firstDifference(rig.expect(.read(sector: 0, bytes: 1 << 20)).answer, pattern(1 << 20, seed: round)) == nil)
      #expect(try firstDifference(rig.expect(.read(sector: 0, bytes: 1 << 20)).answer, pattern(1 << 20, seed: round)) == nil)
      try rig.expect(
        round == 1 ? .writeZeroes([BlockRange(sector: 8, sectors: 64)]) : .discard([BlockRange(sector: 8, sectors: 64)]))
      let expected = pattern(4096, seed: round) + zeroes(64 * 512) + pattern(1 << 20, seed: round)[(4096 + 64 * 512)...]
      #expect(try firstDifference(rig.expect(.read(sector: 0, bytes: 1 << 20)).answer, expected) == nil)
    }
  }

  // MARK: Choice

  @Test func automaticallyForFilesOnLocalDisksThroughTheCache() throws {
    for medium in Medium.allCases {
      let scratch = try Scratch(in: medium.folder)
      let image = try ImageFile(ImageOptions(path: scratch.image(), direct: .off))
      let device = try BlockDevice(image: image, options: .init())
      let expected: EngineKind = image.isInMemory ? .mapped : image.isCached ? .cached : .uring
      #expect(device.engine == expected, "\(device.engineReason)")
      #expect(image.isInMemory || image.isCached || medium == .disk)
      #expect(device.engineWarning == nil)
    }
  }

  @Test func refusedPastTheCache() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let image = try ImageFile(ImageOptions(path: path, direct: .auto))
    try #require(image.isDirect)
    var options = BlockDeviceOptions()
    options.engine = .cached
    #expect(throws: EngineError.notCached(path: path)) { try BlockDevice(image: image, options: options) }
  }
}
