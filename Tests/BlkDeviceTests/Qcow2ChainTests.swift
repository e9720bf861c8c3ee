/// Which files are opened for an image: those that the user named, and none that only an image names.
import Foundation
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2ChainTests {
  /// base (raw), with middle and top over it, all in a folder `in` that has a sibling folder.
  private func chain(_ more: [String] = []) throws -> ImageFolder {
    let folder = try ImageFolder()
    for name in ["in", "out"] {
      try FileManager.default.createDirectory(atPath: folder.place(name), withIntermediateDirectories: false)
    }
    for name in ["in/base", "out/base"] {
      try folder.run(["qemu-img", "create", "-q", "-f", "raw", folder.place(name), "1M"])
    }
    try folder.overlay("in/middle", over: "in/base", "raw", more)
    try folder.overlay("in/top", over: "in/middle", "qcow2", more)
    return folder
  }

  @Test func aBackingFileNeedsAWord() throws {
    let folder = try chain()
    let middle = "backing=qcow2:DIR/in/middle"
    let mistakes = [
      ("DIR/in/top", "?backing=FORMAT:PATH"),
      ("DIR/in/top?\(middle)", "?backing=FORMAT:PATH"),
      ("DIR/in/top?\(middle)&backing=raw:DIR/in/top", "is another file"),
      ("DIR/in/top?backing=raw:DIR/in/base", "is another file"),
      ("DIR/in/top?\(middle)&backing=qcow2:DIR/in/base", "does not start with a qcow2"),
      ("DIR/in/top?\(middle)&backing=raw:DIR/in/base&backing=raw:DIR/in/base", "names no backing file"),
      ("DIR/in/top?\(middle)&backing=raw:DIR/none/base", "No such file"),
      ("DIR/in/top?\(middle)&backing=raw:DIR/in/base&data-file=DIR/in/base", "leave data-file out"),
      ("DIR/in/top?\(middle)&backing=raw:DIR/in/base&snapshot=none", "has no snapshot"),
      ("DIR/in/top?backing-folder=DIR/out", "is not below"),
      ("DIR/in/top?backing-folder=DIR/none", "No such file"),
    ]
    for (words, sentence) in mistakes {
      #expect("\(words)") { try folder.open(words) } throws: { "\($0)".contains(sentence) }
    }
    for words in [
      "DIR/in/top?\(middle)&backing=raw:DIR/in/base", "DIR/in/top?backing-folder=DIR/in", "DIR/in/top?backing-folder=DIR",
      "DIR/in/top?\(middle)&backing-folder=DIR/in",
      // Wherever the user says that it is.
      "DIR/in/top?\(middle)&backing=raw:DIR/out/base",
    ] { #expect(try folder.open(words).size == 1 << 20, "\(words)") }
  }

  /// - Parameter name: the backing file that the image names.
  @Test(arguments: [
    ("/etc/passwd", "raw", "is not below"), ("../out/base", "raw", "is not below"),
    ("/DIR/in/../out/base", "raw", "is not below"),
    ("link", "raw", "or only through a link"), ("linked/base", "raw", "linked/base"),
    ("nbd:localhost:10809", "raw", "not the path of a file"),
    (#"json:{"driver":"file","filename":"/etc/passwd"}"#, "raw", "not the path of a file"),
    ("file:base", "raw", "not the path of a file"), ("base", "vmdk", "only raw and qcow2"),
    ("base", "", "does not say which format"),
    ("pipe", "raw", "neither a regular file"), (".", "raw", "is not below"), ("none", "raw", "No such file"),
    ("top", "qcow2", "is in the chain of images twice"),
  ]) func whatAnImageNamesIsNotFollowed(name: String, format: String, sentence: String) throws {
    let folder = try chain()
    try FileManager.default.createSymbolicLink(atPath: folder.place("in/link"), withDestinationPath: folder.place("out/base"))
    try FileManager.default.createSymbolicLink(atPath: folder.place("in/linked"), withDestinationPath: folder.place("out"))
    try #require(unsafe mkfifo(folder.place("in/pipe"), 0o600) == 0)
    let name = name.replacingOccurrences(of: "/DIR", with: folder.path)
    try Self.rename(folder.place("in/top"), name: name, format: format)
    #expect { try folder.open("DIR/in/top?backing-folder=DIR/in") } throws: { "\($0)".contains(sentence) }
  }

  /// Writes another name and format into an image's header: extensions from 104 on, then the name.
  private static func rename(_ path: String, name: String, format: String) throws {
    var data = [UInt8](repeating: 0, count: 4096 - 104)
    func put(_ word: UInt64, _ bytes: Int, _ place: Int) {
      for index in 0..<bytes { data[place + index] = UInt8(truncatingIfNeeded: word >> UInt64((bytes - 1 - index) * 8)) }
    }
    if !format.isEmpty {
      put(0xe279_2aca, 4, 0)
      put(UInt64(format.utf8.count), 4, 4)
      data.replaceSubrange(8..<8 + format.utf8.count, with: Array(format.utf8))
    }
    data.replaceSubrange(1024 - 104..<1024 - 104 + name.utf8.count, with: Array(name.utf8))
    let handle = try #require(FileHandle(forUpdatingAtPath: path))
    let length = try #require(try handle.read(upToCount: 104)).dropFirst(100).reduce(0) { $0 << 8 | Int($1) }
    try handle.seek(toOffset: UInt64(length))
    try handle.write(contentsOf: Data(data.prefix(4096 - length)))
    try handle.seek(toOffset: 8)
    let place = length + 1024 - 104
    try handle.write(contentsOf: Data((0..<8).map { UInt8(truncatingIfNeeded: place >> (56 - $0 * 8)) }))
    try handle.write(contentsOf: Data((0..<4).map { UInt8(truncatingIfNeeded: name.utf8.count >> (24 - $0 * 8)) }))
    try handle.close()
  }

  @Test func aChainHasAnEnd() throws {
    let folder = try ImageFolder()
    try folder.create("0", "1M")
    let whole = try Data(contentsOf: URL(fileURLWithPath: folder.place("0")))
    for level in 1...70 {
      try whole.write(to: URL(fileURLWithPath: folder.place("\(level)")))
      try Self.rename(folder.place("\(level)"), name: "\(level - 1)", format: "qcow2")
    }
    #expect(try folder.open("DIR/63?backing-folder=DIR").size == 1 << 20)
    #expect { try folder.open("DIR/64?backing-folder=DIR") } throws: { "\($0)".contains("more than 64 images") }
  }

  @Test func whatCannotBeServedIsSaid() throws {
    let folder = try chain()
    var options = ImageOptions(path: folder.place("in/top"))
    options.qcow2 = try folder.location("DIR/in/top")
    #expect { try ImageFile(options) } throws: { "\($0)".contains("?backing=FORMAT:PATH") }
    (options.isReadOnly, options.direct) = (true, .on)
    #expect { try ImageFile(options) } throws: { "\($0)".contains("leave --direct out") }
    try folder.create("odd", "1M")
    try folder.run(["qemu-img", "resize", "-q", "-f", "qcow2", folder.place("odd"), "1049088"])
    #expect { try folder.open("DIR/odd", blockSize: 4096) } throws: { "\($0)".contains("use a smaller --logical-block-size") }
    try folder.create("none", "0")
    #expect(throws: ImageError.qcow2(.empty(path: folder.place("none")))) { try folder.open("DIR/none") }
    // QEMU does not make such an image.
    try folder.create("bytes", "1M")
    try folder.put("bytes", 24, [0, 0, 0, 0, 0, 0, 3, 232])
    #expect { try folder.open("DIR/bytes") } throws: { "\($0)".contains("convert it with 'qemu-img convert'") }
    for engine in [EngineKind.uring, .aio, .mapped, .nbd] {
      var device = BlockDeviceOptions()
      device.engine = engine
      let image = try folder.open("DIR/odd")
      #expect("\(engine)") { try BlockDevice(image: image, options: device) } throws: { "\($0)".contains("leave --engine out") }
    }
  }

  /// A golden image under a disk that is served cannot be served for writing.
  @Test func whatIsUnderADiskIsLocked() throws {
    let folder = try chain()
    let image = try folder.open("DIR/in/top?backing-folder=DIR/in")
    #expect(throws: ImageError.locked(path: folder.place("in/base"))) {
      try ImageFile(ImageOptions(path: folder.place("in/base")))
    }
    // Any number of disks may be over it.
    #expect(try folder.open("DIR/in/top?backing-folder=DIR/in").size == image.size)
    _ = try ImageFile(ImageOptions(path: folder.place("in/base"), isReadOnly: true))
  }

  @Test func whatIsWrittenToIsNotServed() throws {
    let folder = try chain()
    let writer = try ImageFile(ImageOptions(path: folder.place("in/base")))
    #expect { try folder.open("DIR/in/top?backing-folder=DIR/in") } throws: {
      "\($0)".contains("in use by this process itself, which writes to it")
    }
    withExtendedLifetime(writer) {}
  }

  /// QEMU's locks are shared, and reveal a writer all the same.
  @Test func whatQEMUWritesToIsNotServed() throws {
    let folder = try ImageFolder()
    try folder.create("base", "4M")
    try folder.overlay("top", over: "base", "qcow2")
    try folder.overlay("beside", over: "base", "qcow2")
    try folder.overlay("over", over: "top", "qcow2")
    // A read-only open by QEMU is no writer.
    let reader = try ChildProgram(["/usr/bin/env", "qemu-io", "-r", "-f", "qcow2", "-c", "sleep 3600000", folder.place("base")])
    defer { _ = reader.end(SIGKILL) }
    let writer = try ChildProgram([
      "/usr/bin/env", "qemu-io", "-f", "qcow2", "-c", "write 1M 64k", "-c", "flush", "-c", "sleep 3600000", folder.place("top"),
    ])
    // Its file grows once it holds its locks, and checking the length is in nobody's way.
    try waitUntil("qemu-io writes: \(writer.output)") { try folder.length("top") > 0x50000 }
    #expect(throws: ImageError.locked(path: folder.place("top"))) { try folder.open("DIR/top?backing=qcow2:DIR/base") }
    #expect(try folder.open("DIR/beside?backing=qcow2:DIR/base").size == 4 << 20)
    #expect(throws: ImageError.qcow2(.locked(path: folder.place("top")))) {
      try folder.open("DIR/over?backing=qcow2:DIR/top&backing=qcow2:DIR/base")
    }
    _ = writer.end(SIGKILL)
    #expect(try folder.open("DIR/over?backing=qcow2:DIR/top&backing=qcow2:DIR/base").size == 4 << 20)
  }

  @Test func aNameIsTheSameAfterItIsWritten() throws {
    for text in [
      "qcow2:/a/b", "qcow2:a%25b%3fc%26d", "qcow2:a?backing=raw:b:c", "qcow2:a?backing=qcow2:b&backing=raw:c&backing-folder=/f",
      "qcow2:a?data-file=d%3f&snapshot=one two",
    ] { #expect(try Qcow2Location(text).text == text) }
    #expect(try Qcow2Location("QCOW2:a").path == "a")
    let moved = try Qcow2Location("qcow2:a?backing=raw:b&backing-folder=f&data-file=d&snapshot=s").mapPaths { "/x/" + $0 }
    #expect(moved.text == "qcow2:/x/a?backing=raw:/x/b&backing-folder=/x/f&data-file=/x/d&snapshot=s")
  }
}
