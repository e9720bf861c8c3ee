/// How stable writes and flushes reach the kernel, for each engine.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct StableWriteTests {
  /// io_uring's submission entries, as the kernel shows them before they are submitted.
  @Test(arguments: [1, 2], [false, true]) func uringMarksStableWrites(pieces: Int, registersBuffers: Bool) throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(), direct: .off))
    let mailbox = try OwnedDescriptor.eventCounter()
    var setup = UringSetup()
    setup.registersBuffers = registersBuffers
    let memory = try GuestMemory([
      GuestRegion(start: GuestAddress(0), size: 8192, mapping: try Mapping(anonymous: 8192))
    ])
    var engine = try UringEngine(descriptor: image.descriptor, mailbox: mailbox.rawValue, depth: 4, setup: setup)
    engine.use(memory)
    let segments = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 2)
    defer { unsafe segments.deallocate() }
    for index in 0..<2 {
      unsafe (segments + index).initialize(
        to: MemorySegment(base: memory.regions[0].mapping.base + index * 4096, count: 512))
    }
    let tag = UInt32.random(in: 1 << 20..<1 << 30)
    for isDurable in [true, false] {
      let operation = unsafe IOOperation(
        kind: .write, isDurable: isDurable, length: UInt64(512 * pieces), segments: segments, segmentCount: pieces)
      _ = engine.start(operation, tag: tag + (isDurable ? 1 : 0))
    }
    _ = unsafe engine.start(IOOperation(kind: .flush), tag: tag + 2)
    // The kernel shows entries up to the tail in shared memory, which liburing moves only when it submits.
    unsafe engine.ring.pointee.sq.ktail.pointee = engine.ring.pointee.sq.sqe_tail
    let entries = try Self.pendingEntries()
    let durable = try #require(entries.first { $0.contains("user_data:\(tag + 1)") })
    #expect(durable.contains("rw_flags:0x2"), "\(durable)")
    let plain = try #require(entries.first { $0.contains("user_data:\(tag)") })
    #expect(plain.contains("rw_flags:0x0"), "\(plain)")
    let flush = try #require(entries.first { $0.contains("user_data:\(tag + 2)") })
    #expect(flush.contains("opcode:FSYNC") && flush.contains("rw_flags:0x1"), "\(flush)")
    engine.submit()
  }

  /// Lines of fdinfo about submission entries, for all rings of this process.
  private static func pendingEntries() throws -> [String] {
    let files = FileManager.default
    return try files.contentsOfDirectory(atPath: "/proc/self/fd").flatMap { name -> [String] in
      guard (try? files.destinationOfSymbolicLink(atPath: "/proc/self/fd/" + name)) == "anon_inode:[io_uring]",
        let text = try? String(contentsOfFile: "/proc/self/fdinfo/" + name, encoding: .utf8)
      else { return [] }
      return text.split(separator: "\n").map(String.init)
    }
  }

  static let hasTracer = FileManager.default.isExecutableFile(atPath: "/usr/bin/strace")

  /// The system calls of the whole program, as strace sees them.
  @Test(
    .enabled(if: hasTracer, "strace is not there; 'Scripts/setup.sh counts' installs it"),
    arguments: [EngineKind.sync, .aio, .threads])
  func tracedStableWrites(engine: EngineKind) throws {
    let scratch = try Scratch()
    let trace = scratch.path + "/trace"
    let socket = scratch.path + "/s"
    let image = try scratch.image()
    let program = try ChildProgram([
      "/usr/bin/strace", "-f", "-qq", "-o", trace, "-e", "trace=pwrite64,pwritev2,fdatasync,io_submit",
      ChildProgram.vmmBlk, "serve", "--engine", engine.rawValue, "--direct", "off", "--blk-file", image,
      "--socket-path", socket,
    ])
    try program.waitForSocket(socket)
    /// One connection: a driver with these features writes, and flushes if it can.
    func drive(_ features: FeatureSet, sector: UInt64, toggles: Bool = false) throws {
      let transport = try VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20))
      let client = try BlockClient(transport, options: DriverOptions(features: features.union(.version1)))
      _ = try client.perform(.write(sector: sector, pattern(512)))
      if features.contains(.blockFlush) { _ = try client.perform(.flush) }
      if toggles {
        try transport.writeConfiguration(at: 32, [0])
        _ = try client.perform(.write(sector: sector + 1, pattern(512)))
        try transport.writeConfiguration(at: 32, [1])
        _ = try client.perform(.write(sector: sector + 2, pattern(512)))
      }
      try client.shutDown()
    }
    try drive([], sector: 1000)
    try drive([.blockFlush], sector: 2000)
    try drive([.blockFlush, .blockConfigWCE], sector: 3000, toggles: true)
    try drive([.blockConfigWCE], sector: 4000)
    let (status, output) = program.end()
    #expect(status == 0, "\(output)")

    let lines = try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n").map(String.init)
    func write(_ sector: Int) throws -> (line: String, place: Int) {
      let place = try #require(
        lines.firstIndex {
          ($0.contains("pwrite") || $0.contains("IOCB_CMD_PWRITE")) && $0.contains("\(sector * 512)")
        }, "no write of sector \(sector) in \(lines)")
      return (lines[place], place)
    }
    for (sector, isDurable) in [(1000, true), (2000, false), (3000, false), (3001, true), (3002, false), (4000, true)] {
      let line = try write(sector).line
      #expect(line.contains("RWF_DSYNC") == isDurable, "\(line)")
    }
    // Each FLUSH comes after its write and before the next write.
    for (before, after) in [(2000, 3000), (3000, 3001)] {
      let between = try lines[write(before).place...write(after).place]
      #expect(between.contains { $0.contains("fdatasync") || $0.contains("IOCB_CMD_FDSYNC") }, "\(between)")
    }
  }
}
