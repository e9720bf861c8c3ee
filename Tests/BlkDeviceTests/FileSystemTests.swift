/// DISCARD and WRITE_ZEROES on file systems that support both, one, or neither.
import CLinux
import Foundation
import GuestDriver
import SystemPackage
import Testing
import VirtioBlkDevice
import VirtioCore

@Suite struct FileSystemTests {
  static let size = 4 << 20
  /// 1 MiB at 1 MiB.
  static let range = BlockRange(sector: 2048, sectors: 2048)
  static let engines: [EngineKind] = [.uring, .cached, .aio, .sync, .threads, .mapped]

  /// A disk without holes.
  private static func fill(_ rig: Rig) throws {
    let handle = try #require(FileHandle(forWritingAtPath: rig.path))
    try handle.write(contentsOf: Data(repeating: 0xaa, count: size))
    try handle.synchronize()
  }

  private static func expectZeroesInTheRange(_ rig: Rig, _ note: String) throws {
    // As the guest reads it, and as the host does.
    let answer = try rig.expect(.read(sector: 2047, bytes: (1 << 20) + 1024)).answer
    for bytes in [answer, try rig.contents(at: (1 << 20) - 512, count: (1 << 20) + 1024)] {
      let around = [UInt8](repeating: 0xaa, count: 512)
      let isRight = bytes == around + zeroes(1 << 20) + around
      #expect(isRight, "\(note)")
    }
  }

  @Test(arguments: Medium.allCases, engines) func discardFreesHostBlocks(medium: Medium, engine: EngineKind) throws {
    let rig = try Rig(RigOptions(engine: engine, folder: medium.folder, size: Self.size))
    try Self.fill(rig)
    let before = try rig.scratch.allocated(rig.path)
    try #require(before >= Self.size)
    try rig.expect(.discard([Self.range, BlockRange(sector: 6144, sectors: 1024)]))
    #expect(try rig.scratch.allocated(rig.path) <= before - (3 << 19))
    try Self.expectZeroesInTheRange(rig, "\(engine)")
    var info = stat()
    #expect(unsafe stat(rig.path, &info) == 0)
    #expect(Int(info.st_size) == Self.size)
  }

  @Test(arguments: Medium.allCases, engines) func zeroesKeepTheirSpace(medium: Medium, engine: EngineKind) throws {
    for unmap in [false, true] {
      let rig = try Rig(RigOptions(engine: engine, folder: medium.folder, size: Self.size))
      #expect(rig.client.config.writeZeroesMayUnmap == 1)
      try Self.fill(rig)
      let before = try rig.scratch.allocated(rig.path)
      var range = Self.range
      range.flags = unmap ? 1 : 0
      try rig.expect(.writeZeroes([range]))
      let after = try rig.scratch.allocated(rig.path)
      if unmap { #expect(after <= before - (1 << 20)) } else { #expect(after >= Self.size) }
      try Self.expectZeroesInTheRange(rig, "\(engine), unmap \(unmap)")
    }
  }

  /// ramfs supports neither holes nor unwritten extents.
  @Test(.enabled(if: Host.canMount, "mounts are not possible here")) func aFileSystemThatCanDoNeither() async {
    await #expect(processExitsWith: .success) {
      try Self.withMount(["-t", "ramfs", "none"]) { folder in
        for engine in Self.engines {
          let rig = try Rig(RigOptions(engine: engine, folder: folder, size: Self.size))
          #expect(!rig.device.features.contains(.blockDiscard))
          #expect(rig.client.config.discard == nil)
          #expect(rig.device.features.contains(.blockWriteZeroes))
          #expect(rig.client.config.writeZeroesMayUnmap == 0)
          for unmap: UInt32 in [0, 1] {
            try Self.fill(rig)
            var range = Self.range
            range.flags = unmap
            try rig.expect(.writeZeroes([range]))
            try Self.expectZeroesInTheRange(rig, "\(engine), unmap \(unmap)")
          }
          // For a driver that was not offered it, it is an unsupported type.
          try rig.expect(.discard([Self.range]), .unsupported)
        }
      }
    }
  }

  /// ext2 punches holes but cannot preallocate: the result is right all the same.
  @Test(.enabled(if: Host.canMount && Host.hasLoop, "loop mounts are not possible here"))
  func aFileSystemThatOnlyPunches() async {
    await #expect(processExitsWith: .success) {
      let scratch = try Scratch()
      let image = try scratch.image("ext2", size: 32 << 20)
      try #require(Host.run("mkfs.ext2", "-q", "-F", image) != nil)
      try Self.withMount(["-o", "loop", image]) { folder in
        for engine in Self.engines {
          for unmap: UInt32 in [0, 1] {
            let rig = try Rig(RigOptions(engine: engine, folder: folder, size: Self.size))
            try Self.fill(rig)
            var range = Self.range
            range.flags = unmap
            try rig.expect(.writeZeroes([range]))
            try Self.expectZeroesInTheRange(rig, "\(engine), unmap \(unmap)")
            if rig.device.features.contains(.blockDiscard) { try rig.expect(.discard([Self.range])) }
          }
        }
      }
    }
  }

  /// Only this thread and the threads it creates see the mount; it goes with the last of them.
  static func withMount(_ arguments: [String], _ body: (String) throws -> Void) throws {
    let scratch = try Scratch()
    guard unshare(CLONE_NEWNS) == 0 else { throw Errno(rawValue: errno) }
    let child = try ChildProgram(
      ["/bin/sh", "-c", "mount --make-rprivate / && exec mount \"$@\"", "mount"] + arguments + [scratch.path])
    let (status, output) = child.wait()
    try #require(status == 0, "\(output)")
    defer { _ = Host.run("umount", "-l", scratch.path) }
    try body(scratch.path)
  }
}
