/// The header: written, read back, and forged in every imaginable way.
import Foundation
import MemoryFile
import SystemPackage
import TestSupport
import Testing
import VirtioCore

@Suite struct LayoutTests {
  @Test(
    "a file is read back as it was created",
    arguments: [
      (4096 as UInt64, 0 as UInt64, 1), (1 << 20, 0x8000_0000, 2), (12288, UInt64.max - 12287, 1024),
    ])
  func roundTrip(_ size: UInt64, _ base: UInt64, _ queues: Int) throws {
    let directory = try TemporaryDirectory()
    let made = try MemoryFile.create(
      path: directory.file("m"), memorySize: size, memoryBase: GuestAddress(base), maximumQueues: queues)
    let opened = try MemoryFile.open(path: directory.file("m"))
    #expect(opened.layout == made.layout)
    #expect(opened.layout.memorySize == size && opened.layout.memoryBase.rawValue == base)
    #expect(opened.layout.maximumQueues == queues)
    var view = opened.memory.view()
    #expect(view.contiguous(GuestAddress(base), count: Int(size)) != nil)
    let bytes = try #require(FileManager.default.contents(atPath: directory.file("m")))
    #expect(UInt64(bytes.count) == made.layout.fileSize)
    #expect(bytes.prefix(8) == Data("VIRTIOMF".utf8))
    #expect(bytes.dropFirst(0x50).allSatisfy { $0 == 0 })
  }

  @Test(
    "impossible sizes are refused, and leave no file",
    arguments: [
      (0 as UInt64, 0 as UInt64, 1), (100, 0, 1), (4096, 1, 1), (4096, 0, 0), (4096, 0, 1025), (4096, 0, -1),
      (8192, UInt64.max - 4095, 1), (UInt64.max - 4095, 0, 1),
    ])
  func badSizes(_ size: UInt64, _ base: UInt64, _ queues: Int) throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("m")
    #expect(throws: MemoryFileError.badSize(path: path, size: size)) {
      try MemoryFile.create(path: path, memorySize: size, memoryBase: GuestAddress(base), maximumQueues: queues)
    }
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test func anExistingFileIsNotOverwritten() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("m")
    try Data("precious".utf8).write(to: URL(fileURLWithPath: path))
    #expect(throws: MemoryFileError.exists(path: path)) {
      try MemoryFile.create(path: path, memorySize: 4096, maximumQueues: 1)
    }
    #expect(FileManager.default.contents(atPath: path) == Data("precious".utf8))
  }

  /// A change to the header's bytes that must be refused.
  struct Forgery: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let offset: Int
    let bytes: [UInt8]

    init(_ name: String, _ offset: Int, _ value: UInt64, width: Int = 8) {
      testDescription = name
      self.offset = offset
      bytes = (0..<width).map { UInt8(truncatingIfNeeded: value >> (UInt64($0) * 8)) }
    }
  }

  static let forgeries = [
    Forgery("no magic", 0, 0), Forgery("other magic", 0, 0x4c46_4e49_5452_4956), Forgery("version 0", 8, 0, width: 4),
    Forgery("version 2", 8, 2, width: 4), Forgery("no queues", 0xc, 0, width: 4),
    Forgery("1025 queues", 0xc, 1025, width: 4), Forgery("2^32 − 1 queues", 0xc, .max, width: 4),
    Forgery("more queues than the control block holds", 0xc, 1024, width: 4),
    Forgery("a size larger than the file's", 0x10, 1 << 30), Forgery("file size 0", 0x10, 0),
    Forgery("file size 2^64 − 1", 0x10, .max),
    Forgery("control block over the header", 0x18, 0), Forgery("control block at an odd place", 0x18, 4097),
    Forgery("control block outside", 0x18, 1 << 40), Forgery("control block at 2^64 − 4096", 0x18, .max - 4095),
    Forgery("control block too small", 0x20, 64), Forgery("control block of 2^64 − 1", 0x20, .max),
    Forgery("memory over the control block", 0x28, 4096), Forgery("memory at an odd place", 0x28, 20481),
    Forgery("memory outside", 0x28, 1 << 40), Forgery("memory at 2^64 − 4096", 0x28, .max - 4095),
    Forgery("no memory", 0x30, 0), Forgery("more memory than the file", 0x30, 1 << 30),
    Forgery("2^64 − 1 bytes of memory", 0x30, .max), Forgery("base at an odd address", 0x38, 1),
    Forgery("memory beyond 2^64", 0x38, .max - 4095), Forgery("doorbells elsewhere", 0x40, 0, width: 4),
    Forgery("doorbells at 2^32 − 1", 0x40, .max, width: 4), Forgery("other stride", 0x44, 4, width: 4),
    Forgery("state elsewhere", 0x48, .max, width: 4), Forgery("other state size", 0x4c, 0, width: 4),
  ]

  @Test("a forged header is refused with a sentence", arguments: forgeries)
  func hostileHeader(_ forgery: Forgery) throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("m")
    _ = try MemoryFile.create(path: path, memorySize: 1 << 20, maximumQueues: 1)
    var bytes = try #require(FileManager.default.contents(atPath: path))
    bytes.replaceSubrange(forgery.offset..<forgery.offset + forgery.bytes.count, with: forgery.bytes)
    try bytes.write(to: URL(fileURLWithPath: path))
    let error = #expect(throws: MemoryFileError.self) { try MemoryFile.open(path: path) }
    #expect(error?.description.contains(path) == true)
    #expect(throws: MemoryFileError.self) { try MemoryFileSnapshot(path: path) }
  }

  @Test("a file truncated anywhere is refused, unless it is complete", arguments: [0, 1, 8, 79, 80, 4096, 20000, 1 << 20])
  func truncated(_ size: Int) throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("m")
    _ = try MemoryFile.create(path: path, memorySize: 1 << 20, maximumQueues: 1)
    let bytes = try #require(FileManager.default.contents(atPath: path))
    try bytes.prefix(size).write(to: URL(fileURLWithPath: path))
    #expect(throws: MemoryFileError.self) { try MemoryFile.open(path: path) }
  }

  @Test("random headers never trap", arguments: 0..<100 as Range<UInt64>)
  func randomHeader(_ seed: UInt64) throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("m")
    _ = try MemoryFile.create(path: path, memorySize: 65536, maximumQueues: 2)
    var bytes = try #require(FileManager.default.contents(atPath: path))
    var generator = SplitMix(state: seed)
    for _ in 0..<Int(generator.next() % 6 + 1) {
      let offset = 8 + Int(generator.next() % 0x48)
      bytes[offset] = UInt8(truncatingIfNeeded: generator.next())
    }
    try bytes.write(to: URL(fileURLWithPath: path))
    guard let file = try? MemoryFile.open(path: path) else { return }
    #expect(file.layout.memoryOffset + file.layout.memorySize <= UInt64(bytes.count))
    #expect(file.memory.regions.count == 1)
  }

  @Test("anything except a regular file is refused", arguments: ["/dev/null", "/", "/nonexistent/guest.mem"])
  func noFile(_ path: String) {
    #expect(throws: MemoryFileError.self) { try MemoryFile.open(path: path) }
    #expect(throws: MemoryFileError.self) { try MemoryFileSnapshot(path: path) }
  }
}

/// A small random number generator, so that a failure can be repeated with its seed.
struct SplitMix {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ word >> 30) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ word >> 27) &* 0x94d0_49bb_1331_11eb
    return word ^ word >> 31
  }
}
