/// Real media that break under a running device: cut short, full, limited.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

@Suite struct BrokenMediumTests {
  static let engines: [EngineKind] = [.uring, .cached, .aio, .sync, .threads, .mapped]

  private static func fill(_ path: String, _ bytes: [UInt8]) throws {
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.write(contentsOf: bytes)
    try handle.synchronize()
  }

  /// On every engine, a request beyond the new end of a truncated file fails. The file is not extended again: a write there
  /// would turn the lost data into zeroes. The rest stays usable, and all of it is once the file has its old length again.
  @Test(arguments: engines, Medium.allCases) func cutShort(engine: EngineKind, medium: Medium) throws {
    for direct in engine == .mapped || engine == .cached ? [ImageOptions.Direct.off] : [.auto, .off] {
      let rig = try Rig(RigOptions(engine: engine, folder: medium.folder, size: 1 << 20, direct: direct))
      let data = pattern(1 << 20)
      try Self.fill(rig.path, data)
      let whole = BlockRequest.read(sector: 512, bytes: 512 << 10)
      #expect(try firstDifference(rig.expect(whole).answer, Array(data[(256 << 10)..<(768 << 10)])) == nil)
      // Not at the end of a block or of a page.
      let end = (512 << 10) + 100
      try #require(unsafe truncate(rig.path, off_t(end)) == 0)
      usleep(Self.lengthIsKnownFor)
      for framing in [.classic(whole), .pieces(7, whole), .classic(whole, alignment: 1)] as [Framing] {
        try rig.expect(whole, .ioError, framing: framing)
      }
      // The rest is served.
      let left = BlockRequest.read(sector: 512, bytes: 256 << 10)
      #expect(try firstDifference(rig.expect(left).answer, Array(data[(256 << 10)..<(512 << 10)])) == nil)
      try rig.expect(.write(sector: 512, pattern(4096, seed: 2)))
      #expect(try firstDifference(rig.expect(.read(sector: 512, bytes: 4096)).answer, pattern(4096, seed: 2)) == nil)
      // Entirely beyond the end.
      try rig.expect(.read(sector: 1536, bytes: 4096), .ioError)
      try rig.expect(.write(sector: 1536, pattern(4096, seed: 3)), .ioError)
      try rig.expect(.writeZeroes([BlockRange(sector: 1536, sectors: 8)]), .ioError)
      try rig.expect(.discard([BlockRange(sector: 1536, sectors: 8)]), .ioError)
      #expect(try FileManager.default.attributesOfItem(atPath: rig.path)[.size] as? Int == end)
      // Back to the old length.
      try #require(unsafe truncate(rig.path, 1 << 20) == 0)
      usleep(Self.lengthIsKnownFor)
      try rig.expect(.write(sector: 1536, pattern(4096, seed: 3)))
      #expect(try firstDifference(rig.expect(.read(sector: 1536, bytes: 4096)).answer, pattern(4096, seed: 3)) == nil)
      #expect(try firstDifference(rig.expect(.read(sector: 1528, bytes: 4096)).answer, zeroes(4096)) == nil)
      try rig.expect(.flush)
    }
  }

  /// Longer than a worker relies on a known file length, microseconds. Waiting longer does no harm.
  private static let lengthIsKnownFor: UInt32 = 5000

  /// Writes into a mapping of a truncated file.
  @Test func mappedWritesPastTheEnd() throws {
    let rig = try Rig(RigOptions(engine: .mapped, folder: "/dev/shm", size: 1 << 20))
    try #require(unsafe truncate(rig.path, 0) == 0)
    for _ in 0..<2 { try rig.expect(.write(sector: 8, pattern(4096)), .ioError) }
    try rig.expect(.read(sector: 8, bytes: 4096), .ioError)
    try #require(unsafe truncate(rig.path, 1 << 20) == 0)
    try rig.expect(.write(sector: 8, pattern(4096)))
    #expect(try firstDifference(rig.expect(.read(sector: 8, bytes: 4096)).answer, pattern(4096)) == nil)
    #expect(try firstDifference(rig.contents(at: 4096, count: 4096), pattern(4096)) == nil)
  }

  @Test(.enabled(if: Host.canMount, "mounts are not possible here")) func fullFileSystem() async {
    await #expect(processExitsWith: .success) {
      try FileSystemTests.withMount(["-t", "tmpfs", "-o", "size=1m", "none"]) { folder in
        for engine in Self.engines {
          let rig = try Rig(RigOptions(engine: engine, folder: folder))
          var written: [Int] = []
          var refused = 0
          for chunk in 0..<32 {
            let request = BlockRequest.write(sector: UInt64(chunk * 128), pattern(64 << 10, seed: chunk))
            let outcome = try rig.perform(request)
            #expect(outcome.length == 1)
            if outcome.status == .ok {
              written.append(chunk)
            } else {
              #expect(outcome.status == .ioError)
              refused += 1
            }
          }
          #expect(written.count > 8 && refused > 8 && written.count + refused == 32, "\(engine)")
          #expect(rig.device.counters.failures == UInt64(refused))
          // Everything that was acknowledged is there, and the disk recovers.
          for chunk in written {
            let read = try rig.expect(.read(sector: UInt64(chunk * 128), bytes: 64 << 10))
            #expect(firstDifference(read.answer, pattern(64 << 10, seed: chunk)) == nil)
          }
          try rig.expect(.discard([BlockRange(sector: 0, sectors: 2048)]))
          try rig.expect(.write(sector: 4096, pattern(64 << 10)))
          #expect(try firstDifference(rig.expect(.read(sector: 4096, bytes: 64 << 10)).answer, pattern(64 << 10)) == nil)
          // An engine may hold the file for a moment after it has stopped; the next one needs the space.
          try #require(unsafe truncate(rig.path, 0) == 0)
        }
      }
    }
  }

  /// Beyond the limit on file sizes the kernel also sends SIGXFSZ, which ends a process that does not ignore it.
  @Test(arguments: [EngineKind.uring, .aio, .sync, .threads]) func limitedFileSize(engine: EngineKind) throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 4 << 20)
    let socket = scratch.path + "/s"
    // In units of 512 bytes.
    let program = try ChildProgram([
      "/bin/sh", "-c", "ulimit -f 2048; exec \"$@\"", "sh", ChildProgram.vmmBlk, "serve", "--engine", engine.rawValue,
      "--direct", "off", "--blk-file", image, "--socket-path", socket,
    ])
    try program.waitForSocket(socket)
    let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20)))
    func write(_ sector: UInt64) throws -> BlockStatusCode {
      try client.perform(.write(sector: sector, pattern(4096))).status
    }
    #expect(try write(4096) == .ioError)
    // Half of it fits.
    #expect(try write(2044) == .ioError)
    #expect(try write(0) == .ok)
    #expect(try firstDifference(client.perform(.read(sector: 0, bytes: 4096)).answer, pattern(4096)) == nil)
    try client.shutDown()
    let (status, output) = program.end()
    #expect(status == 0, "\(output)")
  }
}
