/// Block devices as images, tried with loop devices over files.
import CLinux
import Foundation
import Glibc
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

@Suite(.enabled(if: Host.hasLoop, "loop devices are not possible here")) struct BlockDeviceImageTests {
  @Test func sizeAndBlocksAreTheDevices() throws {
    let loop = try LoopDevice(size: (8 << 20) + 4096)
    let image = try ImageFile(ImageOptions(path: loop.path))
    #expect(image.isBlockDevice && !image.isReadOnly)
    #expect(image.size == (8 << 20) + 4096)
    #expect(image.canDiscard)
    #expect(image.isDirect)
    #expect(throws: ImageError.locked(path: loop.path)) { _ = try ImageFile(ImageOptions(path: loop.path)) }
  }

  /// The file system of a mounted disk writes to it, so a guest that writes to it as well would destroy it.
  @Test(.enabled(if: Host.canMountDisks, "mounts are not possible here")) func aMountedDeviceIsNotServedForWriting() async {
    await #expect(processExitsWith: .success) {
      let loop = try LoopDevice(size: 16 << 20)
      try #require(Host.run("mkfs.ext4", "-q", loop.path) != nil)
      try FileSystemTests.withMount([loop.path]) { folder in
        let held = ImageError.held(path: loop.path, holder: "it is mounted on \(folder)")
        for direct in ImageOptions.Direct.allCases {
          #expect(throws: held) { _ = try ImageFile(ImageOptions(path: loop.path, direct: direct)) }
        }
        // Reading is allowed, and so is writing with the lock turned off.
        _ = try ImageFile(ImageOptions(path: loop.path, isReadOnly: true))
        _ = try ImageFile(ImageOptions(path: loop.path, isLocked: false))
      }
    }
  }

  /// A device that is served for writing cannot be mounted; it can be again once its last owner has closed it.
  @Test func aServedDeviceIsTaken() throws {
    let loop = try LoopDevice(size: 1 << 20)
    for direct in ImageOptions.Direct.allCases {
      let image = try ImageFile(ImageOptions(path: loop.path, direct: direct))
      let other = unsafe open(loop.path, O_RDWR | O_EXCL | O_CLOEXEC)
      #expect(other < 0 && errno == EBUSY)
      if other >= 0 { close(other) }
      withExtendedLifetime(image) {}
    }
    let readers = try (0..<2).map { _ in try ImageFile(ImageOptions(path: loop.path, isReadOnly: true)) }
    #expect(readers.count == 2)
  }

  /// An exclusively opened device is handed over with its open file description.
  @Test(arguments: ImageOptions.Direct.allCases) func aDeviceTravels(direct: ImageOptions.Direct) throws {
    let loop = try LoopDevice(size: 1 << 20)
    try LockTravel.run(loop.path, direct)
    let other = try LoopDevice(size: 1 << 20)
    let image = try ImageFile(ImageOptions(path: loop.path, direct: direct))
    var options = ImageOptions(path: other.path, direct: direct)
    options.lock = try LockTravel.copy(image.lock)
    #expect(throws: ImageError.notTheSame(path: other.path)) { _ = try ImageFile(options) }
    options.path = loop.path
    let next = try ImageFile(options)
    image.leaveLock()
    let taken = unsafe open(loop.path, O_RDWR | O_EXCL | O_CLOEXEC)
    #expect(taken < 0 && errno == EBUSY)
    if taken >= 0 { close(taken) }
    withExtendedLifetime((image, next)) {}
  }

  @Test func readOnlyDevices() throws {
    let loop = try LoopDevice(size: 1 << 20, "--read-only")
    #expect(throws: ImageError.self) { _ = try ImageFile(ImageOptions(path: loop.path)) }
    let rig = try Rig(RigOptions(isReadOnly: true), image: loop.path)
    #expect(rig.client.isReadOnly)
    try rig.expect(.read(sector: 0, bytes: 4096))
    try rig.expect(.write(sector: 0, pattern(512)), .ioError)
    try rig.expect(.flush)
  }

  /// A device with large blocks takes direct I/O only if the disk has blocks of that size, too.
  @Test func largeSectors() throws {
    let loop = try LoopDevice(size: 4 << 20, "--sector-size", "4096")
    #expect(throws: ImageError.directNeedsLargerBlocks(path: loop.path, alignment: 4096, blockSize: 512)) {
      _ = try ImageFile(ImageOptions(path: loop.path, direct: .on))
    }
    #expect(try !ImageFile(ImageOptions(path: loop.path)).isDirect)
    try unalignedRanges(loop)
    let rig = try Rig(RigOptions(direct: .on, blockSize: 4096), image: loop.path)
    #expect(rig.client.config.blockSize == 4096)
    try rig.expect(.write(sector: 8, pattern(4096)))
    #expect(try firstDifference(rig.expect(.read(sector: 8, bytes: 4096)).answer, pattern(4096)) == nil)
    try rig.expect(.write(sector: 1, pattern(512)), .ioError)
  }

  /// Through the page cache a disk may have smaller blocks than its device: zeroing part of a device block has to write it.
  private func unalignedRanges(_ loop: LoopDevice) throws {
    let rig = try Rig(RigOptions(direct: .off), image: loop.path)
    let data = pattern(16 << 10)
    for flags: UInt32 in [0, 1] {
      try rig.expect(.write(sector: 0, data))
      try rig.expect(.writeZeroes([BlockRange(sector: 1, sectors: 18, flags: flags)]))
      let answer = try rig.expect(.read(sector: 0, bytes: data.count)).answer
      #expect(firstDifference(answer, Array(data[..<512]) + zeroes(18 * 512) + Array(data[(19 * 512)...])) == nil)
    }
    try rig.expect(.discard([BlockRange(sector: 1, sectors: 18)]))
    try rig.expect(.flush)
  }

  @Test(arguments: [EngineKind.uring, .aio, .sync, .threads, .mapped], [ImageOptions.Direct.on, .off])
  func dataDiscardAndZeroes(engine: EngineKind, direct: ImageOptions.Direct) throws {
    let loop = try LoopDevice(size: 8 << 20)
    let rig = try Rig(RigOptions(engine: engine, direct: direct), image: loop.path)
    let data = pattern(1 << 20)
    try rig.expect(.write(sector: 2048, data))
    #expect(try firstDifference(rig.expect(.read(sector: 2048, bytes: data.count)).answer, data) == nil)
    // Buffers of any alignment, also where the page cache is bypassed.
    let odd = BlockRequest.write(sector: 8192, pattern(8192, seed: 4))
    try rig.expect(odd, framing: .classic(odd, alignment: 1))
    #expect(try firstDifference(rig.expect(.read(sector: 8192, bytes: 8192)).answer, pattern(8192, seed: 4)) == nil)
    try rig.expect(.flush)
    let before = try Scratch.allocated(loop.file)
    try rig.expect(.discard([BlockRange(sector: 2048, sectors: 2048)]))
    #expect(try Scratch.allocated(loop.file) <= before - (1 << 20))
    #expect(try firstDifference(rig.expect(.read(sector: 2048, bytes: 4096)).answer, zeroes(4096)) == nil)
    for unmap: UInt32 in [0, 1] {
      try rig.expect(.write(sector: 2048, data))
      try rig.expect(.writeZeroes([BlockRange(sector: 2056, sectors: 1024, flags: unmap)]))
      let answer = try rig.expect(.read(sector: 2048, bytes: data.count)).answer
      #expect(firstDifference(Array(answer[..<4096]), Array(data[..<4096])) == nil)
      #expect(firstDifference(Array(answer[4096..<(4096 + 1024 * 512)]), zeroes(1024 * 512)) == nil)
      #expect(firstDifference(Array(answer[(4096 + 1024 * 512)...]), Array(data[(4096 + 1024 * 512)...])) == nil)
    }
    #expect(rig.device.counters.failures == 0)
  }
}
