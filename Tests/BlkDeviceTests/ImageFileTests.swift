/// Which images are accepted, and what is said about the others.
import CLinux
import Foundation
import SystemPackage
import Testing
import VirtioBlkDevice

@Suite struct ImageFileTests {
  @Test func refusesWhatIsNoDisk() throws {
    let scratch = try Scratch()
    let path = scratch.path
    let empty = try scratch.image("empty", size: 0)
    let odd = try scratch.image("odd", size: 5000)
    let small = try scratch.image("small", size: 512)
    let missing = path + "/missing"
    let cases: [(ImageOptions, ImageError)] = [
      (ImageOptions(path: missing), .cannotOpen(path: missing, .noSuchFileOrDirectory)),
      (ImageOptions(path: path), .notAFile(path: path)),
      (ImageOptions(path: "/dev/null"), .notAFile(path: "/dev/null")),
      (ImageOptions(path: empty), .empty(path: empty)),
      (ImageOptions(path: odd), .oddSize(path: odd, size: 5000, blockSize: 512)),
      (ImageOptions(path: small, logicalBlockSize: 4096), .oddSize(path: small, size: 512, blockSize: 4096)),
      (ImageOptions(path: small, logicalBlockSize: 1000), .badBlockSize(1000)),
      (ImageOptions(path: small, logicalBlockSize: 256), .badBlockSize(256)),
      (ImageOptions(path: small, logicalBlockSize: 131072), .badBlockSize(131072)),
    ]
    for (options, expected) in cases {
      #expect(throws: expected) { _ = try ImageFile(options) }
      #expect(expected.description.count < 250)
    }
  }

  /// Two open descriptions stand for two processes: the lock belongs to the description.
  @Test func keepsTwoWritersApart() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    var writer: ImageFile? = try ImageFile(ImageOptions(path: path))
    #expect(throws: ImageError.locked(path: path)) { _ = try ImageFile(ImageOptions(path: path)) }
    #expect(throws: ImageError.locked(path: path)) { _ = try ImageFile(ImageOptions(path: path, isReadOnly: true)) }
    _ = try ImageFile(ImageOptions(path: path, isLocked: false))
    #expect(writer?.size == 16 << 20)
    writer = nil
    let one = try ImageFile(ImageOptions(path: path, isReadOnly: true))
    let two = try ImageFile(ImageOptions(path: path, isReadOnly: true))
    #expect(throws: ImageError.locked(path: path)) { _ = try ImageFile(ImageOptions(path: path)) }
    #expect(one.isReadOnly && two.isReadOnly)
  }

  @Test func knowsMemoryFromDisk() throws {
    for medium in Medium.allCases {
      let scratch = try Scratch(in: medium.folder)
      let image = try ImageFile(ImageOptions(path: try scratch.image()))
      #expect(image.isInMemory == (medium == .memory))
      #expect(image.canDiscard)
      #expect(!image.isBlockDevice)
    }
  }

  @Test func measuringLeavesTheFileAsItWas() throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 4096)
    _ = try ImageFile(ImageOptions(path: path))
    var info = stat()
    #expect(unsafe stat(path, &info) == 0)
    #expect(info.st_size == 4096)
    #expect(info.st_blocks == 0)
  }

  @Test func leavesNoDescriptorBehind() throws {
    let scratch = try Scratch()
    let odd = try scratch.image("odd", size: 5000)
    let good = try scratch.image("good")
    func descriptors() throws -> Int {
      try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").filter {
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)"))?.hasPrefix(scratch.path) ?? false
      }.count
    }
    for _ in 0..<5 {
      _ = try? ImageFile(ImageOptions(path: odd))
      _ = try ImageFile(ImageOptions(path: good))
    }
    #expect(try descriptors() == 0)
  }
}
