/// Files of a chain that are shorter than they should be, or have nothing where they claim to.
import Foundation
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2CutTests {
  private static let cluster = 65536
  /// Offsets in an image with 64 KiB clusters that was first written to at 0.
  private static let level1 = 0x30000
  private static let level2 = 0x40000
  private static let data = 0x50000

  /// Eight consecutive clusters of ones.
  private func image(_ size: String = "4M") throws -> ImageFolder {
    let folder = try ImageFolder()
    try folder.create("a", size)
    try folder.io("a", ["write -P 1 0 512k"])
    try #require(try folder.length("a") == Self.data + 8 * Self.cluster)
    return folder
  }

  private func ones(_ count: Int) -> [UInt8] { [UInt8](repeating: 1, count: count) }

  @Test func dataThatIsCutWhileItIsServedIsAnError() throws {
    let folder = try image()
    let opened = try folder.open("DIR/a")
    let disk = try #require(opened.chain)
    #expect(try disk.bytes(at: 0, count: 512 << 10) == ones(512 << 10))
    try folder.cut("a", to: Self.data + 3 * Self.cluster + 4096)
    #expect(try disk.bytes(at: 3 * Self.cluster, count: 4096) == ones(4096))
    for (offset, count) in [(3 * Self.cluster, 8192), (3 * Self.cluster + 4096, 512), (5 * Self.cluster, 512), (0, 512 << 10)] {
      #expect(throws: TookTooLong.self, "\(count) at \(offset)") { try disk.bytes(at: offset, count: count) }
    }
  }

  @Test func aRawImageUnderItThatIsCutIsAnError() throws {
    let folder = try ImageFolder()
    // Not a whole number of clusters, nor of sectors.
    try Data(ones(100_000)).write(to: URL(fileURLWithPath: folder.place("base")))
    try folder.create("a", "1M", ["-b", folder.place("base"), "-F", "raw"])
    let opened = try folder.open("DIR/a?backing=raw:DIR/base")
    let disk = try #require(opened.chain)
    #expect(try disk.bytes(at: 98304, count: 4096) == ones(1696) + zeroes(2400))
    try folder.cut("base", to: 70_000)
    #expect(try disk.bytes(at: 65536, count: 4096) == ones(4096))
    #expect(throws: TookTooLong.self) { try disk.bytes(at: 98304, count: 4096) }
    #expect(throws: TookTooLong.self) { try disk.bytes(at: 69632, count: 512) }
  }

  /// If a file ends within a cluster, the rest of that cluster reads as zeroes; the next cluster is an error.
  @Test func aRunIntoAClusterBehindTheEndIsAnError() throws {
    let folder = try image()
    try folder.cut("a", to: Self.data + 2 * Self.cluster + 4096)
    let opened = try folder.open("DIR/a")
    let disk = try #require(opened.chain)
    #expect(
      try disk.bytes(at: Self.cluster, count: 2 * Self.cluster) == ones(Self.cluster + 4096) + zeroes(Self.cluster - 4096))
    #expect(throws: TookTooLong.self) { try disk.bytes(at: 2 * Self.cluster, count: Self.cluster + 512) }
    #expect(throws: TookTooLong.self) { try disk.bytes(at: 2 * Self.cluster, count: 2 * Self.cluster, pieces: 7) }
  }

  @Test func aTableThatIsCutWhileItIsServedIsNotKept() throws {
    let folder = try image()
    let whole = try folder.scratch.contents(folder.place("a"), at: Self.level2, count: 9 * Self.cluster)
    let opened = try folder.open("DIR/a")
    let disk = try #require(opened.chain)
    try folder.cut("a", to: Self.level2 + 8)
    #expect(throws: TookTooLong.self) { try disk.bytes(at: 7 * Self.cluster, count: 512) }
    try folder.put("a", UInt64(Self.level2), whole)
    #expect(try disk.bytes(at: 0, count: 512 << 10) == ones(512 << 10))
  }

  @Test func aTableAtTheEndMayBeCut() throws {
    let folder = try image()
    try folder.cut("a", to: Self.level2 + 16)
    let opened = try folder.open("DIR/a")
    let disk = try #require(opened.chain)
    #expect(try disk.bytes(at: 2 * Self.cluster, count: 512) == zeroes(512))
    #expect(throws: TookTooLong.self) { try disk.bytes(at: Self.cluster, count: 512) }
  }

  /// A sparse file may claim any number of tables.
  @Test func tablesOfZeroesTakeNoMemory() throws {
    let folder = try image("8G")
    try folder.cut("a", to: 0x30_0000)
    for index in 1..<16 { try folder.put("a", UInt64(Self.level1 + index * 8), [0x80, 0, 0, 0, 0, 0x10 + UInt8(index), 0, 0]) }
    do {
      let opened = try folder.open("DIR/a")
      let disk = try #require(opened.chain)
      for index in 1..<16 { #expect(try disk.bytes(at: index << 29, count: 512) == zeroes(512)) }
      #expect(disk.layers[0].heldTables == 0)
      #expect(try disk.bytes(at: 0, count: 512) == ones(512))
      #expect(disk.layers[0].heldTables == 1)
      #expect(try disk.bytes(at: 15 << 29, count: 512) == zeroes(512))
    }
    // All memory is given back.
    #expect(try folder.open("DIR/a").size == 8 << 30)
  }

  /// Without zlib, images are served as long as no compressed cluster is read.
  @Test func aLibraryIsNeededForCompressedClustersOnly() throws {
    let folder = try ImageFolder()
    try folder.create("a", "4M")
    try folder.io("a", ["write -P 1 0 64k", "write -c -P 2 1M 64k"])
    try folder.create("b", "4M", ["-o", "compression_type=zstd"])
    func layer(_ name: String) throws -> Qcow2Layer {
      let file = OwnedDescriptor(unsafe open(folder.place(name), O_RDONLY | O_CLOEXEC))
      let source = try FileSource(file.rawValue)
      return try Qcow2Layer(
        try Qcow2Header(source), file, path: name, source: source, data: nil, snapshot: nil
      ) { _ throws(Qcow2Fault) in throw .noLibrary("libnone.so", package: "none") }
    }
    let disk = Qcow2Disk([try layer("a")], isInMemory: false)
    #expect(try disk.bytes(at: 0, count: 64 << 10) == ones(64 << 10))
    #expect(throws: TookTooLong.self) { try disk.bytes(at: 1 << 20, count: 512) }
    #expect(throws: Qcow2Fault.noLibrary("libnone.so", package: "none")) { try layer("b") }
  }
}
