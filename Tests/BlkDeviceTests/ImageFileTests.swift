/// Which files are accepted as images, and the errors for the others.
import CLinux
import Foundation
import Glibc
import SystemPackage
import Testing
import VirtioBlkDevice
import VirtioCore

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
      (ImageOptions(path: small + "\0/other"), .notAPath(path: small + "\0/other")),
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

  /// Two open file descriptions stand for two processes: the lock belongs to the description.
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

  // MARK: Locks that are handed over

  /// A lock belongs to its open file description: a process that receives that keeps all others out, through any number of
  /// hand-overs.
  @Test(arguments: ImageOptions.Direct.allCases) func aLockTravels(direct: ImageOptions.Direct) throws {
    let scratch = try Scratch()
    try LockTravel.run(scratch.image(), direct)
  }

  /// Until the old server has released it, the lock is the old server's.
  @Test func aTakeoverThatFailsLeavesTheLock() throws {
    let scratch = try Scratch()
    let path = try scratch.image()
    let first = try ImageFile(ImageOptions(path: path))
    var options = ImageOptions(path: path)
    options.lock = try LockTravel.copy(first.lock)
    var second: ImageFile? = try ImageFile(options)
    #expect(second?.size == first.size)
    options.lock = nil
    second = nil
    #expect(throws: ImageError.locked(path: path)) { _ = try ImageFile(ImageOptions(path: path)) }
    withExtendedLifetime(first) {}
  }

  @Test func aLockOfAnotherFileIsRefused() throws {
    let scratch = try Scratch()
    let (path, other) = try (scratch.image("one"), scratch.image("two"))
    let image = try ImageFile(ImageOptions(path: path))
    for wrong in [other, "/dev/null"] {
      var options = ImageOptions(path: path)
      options.lock = OwnedDescriptor(try #require(LockTravel.opened(wrong)))
      #expect(throws: ImageError.notTheSame(path: path)) { _ = try ImageFile(options) }
    }
    var options = ImageOptions(path: other)
    options.lock = try LockTravel.copy(image.lock)
    #expect(throws: ImageError.notTheSame(path: other)) { _ = try ImageFile(options) }
    // Another name of the same file is not another file.
    let link = scratch.path + "/link"
    try #require(unsafe Glibc.link(path, link) == 0)
    options = ImageOptions(path: link)
    options.lock = try LockTravel.copy(image.lock)
    #expect(try ImageFile(options).size == image.size)
    #expect(try ImageFile(ImageOptions(path: other, isLocked: false)).lock == nil)
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

  /// Nothing is tried beyond the end, because there is nothing: the kernel refuses offsets that large.
  @Test(arguments: Medium.allCases) func anImageOfTheLargestSizeCanDiscard(medium: Medium) throws {
    let scratch = try Scratch(in: medium.folder)
    let path = try scratch.image(size: 0)
    // The largest size is found by bisection.
    var (size, step) = (0, 1 << 62)
    while step >= 4096 {
      if size &+ step > 0, unsafe truncate(path, off_t(size + step)) == 0 { size += step }
      step /= 2
    }
    try #require(unsafe truncate(path, off_t(size)) == 0)
    #expect(try ImageFile(ImageOptions(path: path)).canDiscard)
  }

  /// A name that is not UTF-8 works like any other.
  @Test func aNameIsBytes() throws {
    let scratch = try Scratch()
    let bytes = scratch.path.utf8.map { CChar(bitPattern: $0) } + [0x2f, CChar(bitPattern: 0xff), 0x61, 0]
    let descriptor = unsafe open(bytes, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    try #require(descriptor >= 0)
    #expect(ftruncate(descriptor, 4096) == 0)
    close(descriptor)
    defer { unsafe unlink(bytes) }
    let name = String(decoding: bytes.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    #expect(throws: ImageError.cannotOpen(path: name, .noSuchFileOrDirectory)) { _ = try ImageFile(ImageOptions(path: name)) }
    var options = ImageOptions(path: name)
    options.pathBytes = bytes
    #expect(try ImageFile(options).size == 4096)
  }

  // MARK: Serial numbers

  /// A guest finds its disks by their serial numbers (/dev/disk/by-id).
  @Test func imagesOfOneNameHaveDifferentSerials() throws {
    let serials = try (0..<8).map { _ in
      let scratch = try Scratch()
      return try ImageFile(ImageOptions(path: scratch.image("disk.img"))).description.serial
    }
    #expect(Set(serials).count == serials.count)
    for serial in serials {
      #expect(serial.hasPrefix("disk.img-"))
      #expect(serial.utf8.count <= BlockDeviceOptions.serialSize)
      #expect(serial.utf8.allSatisfy { (0x21...0x7e).contains($0) })
    }
  }

  @Test func aSerialStaysWhatItIs() throws {
    let scratch = try Scratch()
    let path = try scratch.image("disk.img")
    func serial(_ path: String, isReadOnly: Bool = false) throws -> String {
      try ImageFile(ImageOptions(path: path, isReadOnly: isReadOnly)).description.serial
    }
    let first = try serial(path)
    try #require(FileHandle(forWritingAtPath: path)).write(contentsOf: Data(count: 4096))
    #expect(unsafe truncate(path, 32 << 20) == 0)
    #expect(try serial(path) == first)
    #expect(try serial(path, isReadOnly: true) == first)
    #expect(try serial(scratch.path + "/./disk.img") == first)
  }

  @Test func aSerialOfAnyNameIsPrintable() throws {
    let scratch = try Scratch()
    for name in ["ü", "a name with spaces and more than twenty letters", "\u{1b}[2J"] {
      let serial = try ImageFile(ImageOptions(path: scratch.image(name))).description.serial
      #expect(serial.utf8.count <= BlockDeviceOptions.serialSize && !serial.isEmpty)
      #expect(serial.utf8.allSatisfy { (0x21...0x7e).contains($0) })
    }
  }
}

/// An image that is handed over through three servers.
enum LockTravel {
  /// A duplicate descriptor of the same open file description, as a process receives it.
  static func copy(_ lock: OwnedDescriptor?) throws -> OwnedDescriptor {
    let descriptor = try dup(#require(lock).rawValue)
    try #require(descriptor >= 0)
    return OwnedDescriptor(descriptor)
  }

  static func opened(_ path: String) -> Int32? {
    let descriptor = unsafe open(path, O_RDWR | O_CLOEXEC)
    return descriptor < 0 ? nil : descriptor
  }

  static func run(_ path: String, _ direct: ImageOptions.Direct) throws {
    func isLocked(_ note: String) {
      #expect(throws: ImageError.locked(path: path), "\(note)") { _ = try ImageFile(ImageOptions(path: path)) }
    }
    var server: ImageFile? = try ImageFile(ImageOptions(path: path, direct: direct))
    let isDirect = server?.isDirect
    for hand in 1...3 {
      var options = ImageOptions(path: path, direct: direct)
      options.lock = try copy(server?.lock)
      var next: ImageFile? = try ImageFile(options)
      options.lock = nil
      #expect(next?.isDirect == isDirect)
      #expect(next?.descriptor != server?.descriptor && next?.lock?.rawValue != next?.descriptor)
      server?.leaveLock()
      server = nil
      isLocked("hand \(hand)")
      next?.ownLock()
      isLocked("hand \(hand), its own")
      swap(&server, &next)
    }
    server = nil
    #expect(try ImageFile(ImageOptions(path: path, direct: direct)).lock != nil)
  }
}
