/// Images made by QEMU and read here; and images made here and read by QEMU.
import Foundation
import TestSupport
import Testing

@testable import Qcow2

@Suite(.enabled(if: Qemu.isHere, "qemu-img is not installed")) struct FormatTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var options: String
    var size = "10M"
    var more: [String] = []
    var testDescription: String { "\(options) \(size) \(more)" }

    init(_ options: String, _ size: String = "10M", _ more: [String] = []) {
      (self.options, self.size, self.more) = (options, size, more)
    }
  }

  static let cases: [Case] =
    [
      Case("compat=0.10"), Case("compat=1.1"), Case("compat=1.1,lazy_refcounts=on"), Case("compression_type=zstd"),
      Case("extended_l2=on"), Case("extended_l2=on,cluster_size=16k"), Case("extended_l2=on,cluster_size=2M"),
      Case("preallocation=metadata"), Case("preallocation=falloc,extended_l2=on"), Case("cluster_size=64k", "0"),
      Case("cluster_size=64k", "1T"), Case("cluster_size=2M", "1P"), Case("cluster_size=512", "100G"),
    ] + (9...21).map { Case("cluster_size=\(1 << $0)") } + (0...6).map { Case("refcount_bits=\(1 << $0)") }

  @Test(arguments: cases) func theHeaderOfQEMUSaysTheSame(test: Case) throws {
    try withDirectory { folder in
      let path = folder + "/image"
      try Qemu.image(["create", "-q", "-f", "qcow2", "-o", test.options, path, test.size])
      let file = try OpenFile(path)
      let header = try Qcow2Header(file.source)
      let info = try Qemu.json(["info", "-f", "qcow2", path])
      let specific = (info["format-specific"] as? [String: Any])?["data"] as? [String: Any] ?? [:]
      #expect(header.size == info["virtual-size"] as? UInt64)
      #expect(header.clusterSize == info["cluster-size"] as? UInt64)
      #expect((header.version == 2 ? "0.10" : "1.1") == specific["compat"] as? String)
      #expect(1 << Int(header.refcountOrder) == specific["refcount-bits"] as? Int ?? 16)
      #expect(header.geometry.isExtended == specific["extended-l2"] as? Bool ?? false)
      #expect(header.hasLazyRefcounts == specific["lazy-refcounts"] as? Bool ?? false)
      #expect("\(header.compression)" == specific["compression-type"] as? String ?? "zlib")
      #expect(try Qcow2Check.run(file.source, header).isClean)
    }
  }

  @Test func namesOfOtherFilesAreTold() throws {
    try withDirectory { folder in
      try Qemu.image(["create", "-q", "-f", "raw", folder + "/base", "1M"])
      try Qemu.image(["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", folder + "/over"])
      try Qemu.image([
        "create", "-q", "-f", "qcow2", "-o", "data_file=\(folder)/data,data_file_raw=on", folder + "/external", "1M",
      ])
      let files = try (OpenFile(folder + "/over"), OpenFile(folder + "/external"))
      let over = try Qcow2Header(files.0.source)
      #expect(over.backingText == "base" && over.backingFormat == "raw" && over.size == 1 << 20)
      let external = try Qcow2Header(files.1.source)
      #expect(external.dataFileText == folder + "/data" && external.hasDataFile && external.isDataFileRaw)
      withExtendedLifetime(files) {}
    }
  }

  @Test func snapshotsAreFoundByNameAndNumber() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      try Qemu.image(["create", "-q", "-f", "qcow2", path, "4M"])
      for (index, name) in ["one", "another one", "3"].enumerated() {
        try Qemu.io(path, ["write -P \(index + 1) 0 128k"])
        try Qemu.image(["snapshot", "-c", name, path])
      }
      let file = try OpenFile(path)
      let header = try Qcow2Header(file.source)
      #expect(try header.snapshots(file.source).map(\.name) == ["one", "another one", "3"])
      #expect(try header.snapshot("another one", file.source).id == "2")
      // A name takes precedence over a number.
      #expect(try header.snapshot("3", file.source).name == "3")
      #expect(try header.snapshot("1", file.source).name == "one")
      #expect(throws: Qcow2Fault.noSnapshot("4")) { try header.snapshot("4", file.source) }
      #expect(try header.snapshots(file.source).allSatisfy { $0.diskSize == 4 << 20 })
      #expect(try Qcow2Check.run(file.source, header).isClean)
    }
  }

  // MARK: Made here

  @Test(
    arguments: [
      (UInt32(16), false, UInt64(1 << 20), nil), (17, true, 1 << 30, nil), (14, true, 1 << 40, nil), (21, true, 1 << 50, nil),
      (21, false, 512, nil), (9, false, 100 << 30, nil), (9, false, 1 << 20, "base"), (17, true, 1 << 20, "a base"),
      (10, false, 0, nil),
    ] as [(UInt32, Bool, UInt64, String?)]) func whatIsMadeHereIsFineForQEMU(
      bits: UInt32, isExtended: Bool, size: UInt64, backing: String?
    ) throws
  {
    try withDirectory { folder in
      let path = folder + "/image"
      if let backing { try Qemu.image(["create", "-q", "-f", "raw", folder + "/" + backing, "\(size)"]) }
      let layout = try Qcow2Layout(
        size: size, geometry: Qcow2Geometry(clusterBits: bits, isExtended: isExtended),
        backingName: backing.map { Array($0.utf8) }, backingFormat: backing.map { _ in "raw" })
      #expect(FileManager.default.createFile(atPath: path, contents: nil))
      let handle = try #require(FileHandle(forUpdatingAtPath: path))
      for piece in layout.pieces {
        try handle.seek(toOffset: piece.offset)
        try handle.write(contentsOf: Data(piece.bytes))
      }
      try handle.truncate(atOffset: layout.fileSize)
      try handle.close()
      #expect(try Qemu.check(path).status == 0)
      let info = try Qemu.json(["info", "-f", "qcow2", path])
      #expect(info["virtual-size"] as? UInt64 == size)
      #expect(info["backing-filename"] as? String == backing)
      if size >= 1 << 20 {
        try Qemu.io(path, ["write -P 7 4k 300k", "write -P 8 \(size - 65536) 64k", "read -P 7 4k 300k", "read -P 0 0 4k"])
        #expect(try Qemu.check(path).status == 0)
      }
      let file = try OpenFile(path)
      let header = try Qcow2Header(file.source)
      #expect(header.size == size && header.backingText == backing)
      #expect(try Qcow2Check.run(file.source, header).isClean)
    }
  }

  @Test func whatCannotBeMadeIsRefused() {
    let classic = Qcow2Geometry(clusterBits: 16, isExtended: false)
    #expect(throws: Qcow2Fault.diskTooLarge(1 << 62)) { try Qcow2Layout(size: 1 << 62, geometry: classic) }
    #expect(throws: Qcow2Fault.diskTooLarge(.max)) { try Qcow2Layout(size: .max, geometry: classic) }
    #expect(throws: Qcow2Fault.clusterBits(8)) {
      try Qcow2Layout(size: 1 << 20, geometry: Qcow2Geometry(clusterBits: 8, isExtended: false))
    }
    #expect(throws: Qcow2Fault.smallClustersForSubclusters(13)) {
      try Qcow2Layout(size: 1 << 20, geometry: Qcow2Geometry(clusterBits: 13, isExtended: true))
    }
    for name in [[], [0x61, 0], [UInt8](repeating: 97, count: 1024)] as [[UInt8]] {
      #expect(throws: Qcow2Fault.backingName) { try Qcow2Layout(size: 1 << 20, geometry: classic, backingName: name) }
    }
  }

  // MARK: Numbers

  @Test func refcountsOfEveryWidth() {
    let bytes: [UInt8] = [0b1011_0110, 0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb, 0xed, 1, 2, 3, 4, 5, 6, 7, 8]
    func entry(_ index: Int, _ order: UInt32) -> UInt64 { Qcow2Refcounts<MemorySource>.entry(index, order: order, bytes) }
    #expect((0..<8).map { entry($0, 0) } == [0, 1, 1, 0, 1, 1, 0, 1])
    #expect((0..<4).map { entry($0, 1) } == [2, 1, 3, 2])
    #expect((0..<4).map { entry($0, 2) } == [6, 11, 1, 2])
    #expect(entry(1, 3) == 0x21 && entry(1, 4) == 0x4365 && entry(1, 5) == 0x87a9_cbed && entry(1, 6) == 0x0102_0304_0506_0708)
  }

  @Test func compressedEntriesAreTakenApart() throws {
    let header = try Qcow2Header(try Sample().source)
    let entries = Qcow2Entries(header)
    // 62 − 8 = 54 bits of an offset, then sectors beyond the first.
    #expect(try entries.level2(1 << 62 | 3 << 54 | 0x50201, bitmap: 0) == .compressed(offset: 0x50201, count: 4 * 512 - 1))
    #expect(try entries.level2(1 << 62 | 0x50000, bitmap: 0) == .compressed(offset: 0x50000, count: 512))
  }

  /// Of plain entries, and of nothing else.
  @Test func aPlainEntryIsTakenApartAsAnyOther() throws {
    let entries = Qcow2Entries(try Qcow2Header(try Sample().source))
    var (answers, random) = (0, SystemRandomNumberGenerator())
    for _ in 0..<100_000 {
      // A few bits of any kind.
      var entry: UInt64 = 0
      for _ in 0..<Int.random(in: 0...4, using: &random) { entry |= 1 << UInt64.random(in: 0..<64, using: &random) }
      guard let (place, isOwn) = entries.plainCluster(entry) else { continue }
      answers += 1
      #expect(try entries.level2(entry, bitmap: 0) == (place == 0 ? .unallocated : .data(offset: place)), "\(entry)")
      #expect(isOwn == (entry >> 63 == 1), "\(entry)")
    }
    #expect(answers > 5000, "\(answers)")
  }
}
