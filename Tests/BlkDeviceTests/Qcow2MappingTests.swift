/// qcow2 images in memory: data that is there is copied without a system call, and everything else is left to one.
import CLinux
import Foundation
import Glibc
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct Qcow2MappingTests {
  private static let cluster = 64 << 10

  private func image(size: UInt64 = 8 << 20, clusterBits: UInt32 = 16, isExtended: Bool = false) throws -> ImageFolder {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.make("a", size: size, clusterBits: clusterBits, isExtended: isExtended)
    return folder
  }

  /// Whether a transfer of a piece of memory is a copy. - Parameter value: what is written; `nil`: it is read, and it is ones.
  private func isCopy(_ disk: Qcow2Disk, at offset: Int, count: Int = 4096, value: UInt8? = nil) -> Bool {
    var bytes = [UInt8](repeating: value ?? 0xa5, count: count)
    return unsafe bytes.withUnsafeMutableBytes { buffer in
      var segment = unsafe MemorySegment(base: buffer.baseAddress!, count: count)
      return unsafe withUnsafeMutablePointer(to: &segment) { segment in
        var operation = unsafe IOOperation(kind: value == nil ? .read : .write)
        (operation.offset, operation.length, operation.segmentCount) = (UInt64(offset), UInt64(count), 1)
        unsafe operation.segments = segment
        var copies = Qcow2Copies(disk)
        guard let place = copies.place(of: operation) else { return false }
        return copies.perform(operation, place) == Int32(count)
      }
    }
  }

  private func ones(_ count: Int) -> [UInt8] { [UInt8](repeating: 1, count: count) }

  @Test(arguments: [9, 12, 16, 21] as [UInt32]) func whatIsThereIsCopied(clusterBits: UInt32) throws {
    let folder = try image(clusterBits: clusterBits)
    try folder.writing("DIR/a") { disk in
      // Nothing is there yet.
      #expect(!isCopy(disk, at: 4 << 20, count: 512))
      #expect(!isCopy(disk, at: 4 << 20, count: 512, value: 1))
      try #require(disk.change(.write, at: 0, count: 6 << 20, value: 1) == 0)
      // Windows that are partly metadata of the image, or holes, are not copied from.
      let places = stride(from: 1 << 20, to: 5 << 20, by: 64 << 10)
      let copied = places.count { isCopy(disk, at: $0, count: 512) && isCopy(disk, at: $0 + 512, count: 512, value: 2) }
      #expect(copied > 48, "\(copied) of 64")
      #expect(!isCopy(disk, at: 7 << 20, count: 512))
      #expect(!isCopy(disk, at: (8 << 20) - 512, count: 512, value: 1))
      try #require(disk.change(.flush, at: 0, count: 0) == 0)
    }
    let opened = try folder.open("DIR/a")
    let disk = try #require(opened.chain)
    for place in stride(from: 1 << 20, to: 5 << 20, by: 64 << 10) {
      let bytes = try disk.bytes(at: place, count: 2048, pieces: 3)
      #expect(bytes[..<512] == ones(512)[...] && bytes[1024...] == ones(1024)[...])
      #expect(bytes[512] == 1 || bytes[512] == 2)
    }
  }

  /// First writes and later ones, by two threads, to clusters that share windows.
  @Test(arguments: [false, true]) func aDiskThatGrowsIsRight(isExtended: Bool) async throws {
    let folder = try image(clusterBits: isExtended ? 14 : 12, isExtended: isExtended)
    do {
      let opened = try folder.openToWrite("DIR/a")
      let disk = try #require(opened.chain)
      await withTaskGroup(of: Int32.self) { group in
        for thread in 0..<2 {
          group.addTask {
            var failed: Int32 = 0
            for round in 0..<8 {
              for block in 0..<1024 where block % 2 == thread {
                let result = disk.change(.write, at: block * 8192, count: 8192, value: UInt8((block + round) % 251))
                if result != 0 { failed = result }
              }
            }
            return failed
          }
        }
        for await result in group { #expect(result == 0) }
      }
      #expect(isCopy(disk, at: 4 << 20))
      opened.finish()
    }
    let opened = try folder.open("DIR/a")
    let disk = try #require(opened.chain)
    for block in 0..<1024 {
      #expect(try disk.bytes(at: block * 8192, count: 8192) == [UInt8](repeating: UInt8((block + 7) % 251), count: 8192))
    }
  }

  @Test func whatIsDiscardedStaysAHole() throws {
    let folder = try image()
    try folder.writing("DIR/a") { disk in
      try #require(disk.change(.write, at: 0, count: 4 << 20, value: 1) == 0)
      #expect(isCopy(disk, at: 2 << 20))
      let before = try folder.scratch.allocated(folder.place("a"))
      try #require(disk.change(.punchHole, at: 1 << 20, count: 2 << 20) == 0)
      #expect(try folder.scratch.allocated(folder.place("a")) == before - (2 << 20))
      for place in stride(from: 1 << 20, to: 3 << 20, by: 4096) {
        #expect(!isCopy(disk, at: place))
        try #require(try disk.bytes(at: place, count: 4096) == zeroes(4096))
      }
      #expect(try folder.scratch.allocated(folder.place("a")) == before - (2 << 20))
      // And back.
      try #require(disk.change(.write, at: 1 << 20, count: 2 << 20, value: 3) == 0)
      #expect(isCopy(disk, at: 2 << 20, value: 4))
      #expect(try disk.bytes(at: 2 << 20, count: 4097) == [UInt8](repeating: 4, count: 4096) + [3])
    }
  }

  /// What is in backing files is copied from them, and never into them.
  @Test func aBackingFileIsOnlyRead() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try Data(ones(4 << 20)).write(to: URL(fileURLWithPath: folder.place("base")))
    try folder.make("a", size: 4 << 20, clusterBits: 16, isExtended: false, over: "base")
    try folder.writing("DIR/a?backing=raw:DIR/base") { disk in
      #expect(isCopy(disk, at: 2 << 20))
      #expect(!isCopy(disk, at: 2 << 20, value: 2))
      try #require(disk.change(.write, at: 2 << 20, count: 4096, value: 2) == 0)
      // The cluster is this image's own now; its window has other contents of the image, or none.
      try #require(disk.change(.write, at: (2 << 20) + Self.cluster, count: 4 * Self.cluster, value: 2) == 0)
      #expect(try disk.bytes(at: 2 << 20, count: 8192) == [UInt8](repeating: 2, count: 4096) + ones(4096))
    }
    #expect(try folder.bytes("base") == ones(4 << 20))
  }

  /// Through a device: what was truncated is an error, also for data that was copied before, and nothing ends.
  @Test(arguments: [EngineKind.auto, .mapped]) func aTruncatedFileIsAnError(engine: EngineKind) throws {
    let folder = try image()
    var options = RigOptions(engine: engine)
    options.qcow2 = try folder.location("DIR/a")
    let rig = try Rig(options)
    let data = pattern(4 << 20)
    try rig.expect(.write(sector: 0, data), .ok)
    try rig.expect(.flush, .ok)
    for _ in 0..<2 {
      #expect(try rig.expect(.read(sector: 4096, bytes: 4096)).answer == Array(data[2 << 20..<(2 << 20) + 4096]))
    }
    try folder.cut("a", to: 1 << 20)
    try rig.expect(.read(sector: 4096, bytes: 4096), .ioError)
    try rig.expect(.read(sector: 5000, bytes: 4096), .ioError)
    try rig.expect(.flush, .ioError)
    #expect(try rig.expect(.read(sector: 64, bytes: 4096)).answer == Array(data[32768..<36864]))
  }

  /// A hole that another program makes, while there is no memory left: a copy into it must not be lost.
  @Test(.enabled(if: Host.canMount, "mounts are not possible here")) func withoutMemoryACopyIsAnError() async {
    await #expect(processExitsWith: .success) {
      try FileSystemTests.withMount(["-t", "tmpfs", "-o", "size=4m", "none"]) { place in
        let folder = try ImageFolder(in: place)
        try folder.make("a", size: 2 << 20, clusterBits: 16, isExtended: false)
        var options = RigOptions(engine: .mapped)
        options.qcow2 = try folder.location("DIR/a")
        let rig = try Rig(options)
        try rig.expect(.write(sector: 0, pattern(1 << 20)), .ok)
        let data = pattern(4096, seed: 1)
        for sector in stride(from: 0, to: 2048, by: 8) { try rig.expect(.write(sector: UInt64(sector), data), .ok) }
        // Half of the disk's file becomes a hole, and another file takes all the memory.
        let other = unsafe open(folder.place("a"), O_RDWR | O_CLOEXEC)
        defer { close(other) }
        try #require(fallocate(other, Int32(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE), 512 << 10, 512 << 10) == 0)
        try #require(FileManager.default.createFile(atPath: folder.place("full"), contents: nil))
        let full = unsafe open(folder.place("full"), O_RDWR | O_CLOEXEC)
        defer { close(full) }
        while unsafe data.withUnsafeBytes({ unsafe write(full, $0.baseAddress!, 4096) }) == 4096 {}
        // Whatever is answered as done can be read.
        let again = pattern(4096, seed: 2)
        var errors = 0
        for sector in stride(from: 0, to: 2048, by: 8) {
          let outcome = try rig.perform(.write(sector: UInt64(sector), again))
          guard outcome.status == .ok else {
            errors += 1
            continue
          }
          let read = try rig.expect(.read(sector: UInt64(sector), bytes: 4096))
          #expect(firstDifference(read.answer, again) == nil)
        }
        #expect(errors > 0 && errors < 256)
      }
    }
  }

  /// A file that is larger than the machine's memory is mostly holes: it is served, and its beginning is copied.
  @Test func aFileLargerThanTheMemoryIsServed() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try #require(FileManager.default.createFile(atPath: folder.place("base"), contents: nil))
    try folder.put("base", 0, ones(1 << 20))
    try folder.cut("base", to: 1 << 42)
    try folder.put("base", (1 << 42) - 4096, ones(4096))
    try folder.make("a", size: 1 << 42, clusterBits: 21, isExtended: false, over: "base")
    try folder.writing("DIR/a?backing=raw:DIR/base") { disk in
      #expect(isCopy(disk, at: 512 << 10))
      #expect(!isCopy(disk, at: (1 << 42) - 4096))
      #expect(try disk.bytes(at: (1 << 42) - 8192, count: 8192) == zeroes(4096) + ones(4096))
      try #require(disk.change(.write, at: (1 << 42) - 4096, count: 4096, value: 2) == 0)
      #expect(try disk.bytes(at: (1 << 42) - 4096, count: 4096) == [UInt8](repeating: 2, count: 4096))
    }
    // New clusters are beyond the end of the file, where nothing is mapped.
    try folder.cut("a", to: 1 << 41)
    try folder.writing("DIR/a?backing=raw:DIR/base") { disk in
      for value in 3..<6 as Range<UInt8> {
        try #require(disk.change(.write, at: 1 << 30, count: 8 << 20, value: value) == 0)
        #expect(!isCopy(disk, at: 1 << 30))
        #expect(try disk.bytes(at: 1 << 30, count: 8 << 20) == [UInt8](repeating: value, count: 8 << 20))
        try #require(disk.change(.punchHole, at: 1 << 30, count: 4 << 20) == 0)
        #expect(try disk.bytes(at: 1 << 30, count: 4 << 20) == zeroes(4 << 20))
      }
    }
  }
}
