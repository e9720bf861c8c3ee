/// The checker agrees with qemu-img about the same image.
import Foundation
import TestSupport
import Testing

@testable import Qcow2

@Suite(.enabled(if: Qemu.isHere, "qemu-img is not installed")) struct CheckTests {
  /// What is done to an image before it is checked.
  static let histories: [(String, String, [String])] = [
    ("written", "", ["write 0 3M", "write 5M 17k"]),
    ("with subclusters", "extended_l2=on", ["write 4k 4k", "write 1M 200k", "write -z 8k 4k", "discard 1M 64k"]),
    ("zeroed and discarded", "", ["write 0 2M", "write -z 64k 128k", "write -z -u 512k 64k", "discard 1M 256k"]),
    ("small clusters", "cluster_size=512", ["write 0 300k", "discard 100k 10k"]),
    ("compressed", "", ["write -c 0 64k", "write -c -P 3 64k 64k", "write -c 512k 64k", "write 64k 4k"]),
    ("compressed by zstd", "compression_type=zstd", ["write -c 0 64k", "write -c -P 3 64k 64k"]),
    ("narrow refcounts", "refcount_bits=1", ["write 0 1M", "discard 0 64k"]),
    ("wide refcounts", "refcount_bits=64", ["write 0 1M"]),
    ("version 2", "compat=0.10", ["write 0 1M", "write -c 2M 64k"]),
  ]

  @Test(arguments: histories) func whatQEMULeavesIsClean(name: String, options: String, commands: [String]) throws {
    try withDirectory { folder in
      let path = folder + "/image"
      try Qemu.image(["create", "-q", "-f", "qcow2"] + (options.isEmpty ? [] : ["-o", options]) + [path, "8M"])
      try Qemu.io(path, commands)
      if options != "refcount_bits=1" {
        try Qemu.image(["snapshot", "-c", "a", path])
        // Allocated clusters cannot be compressed in place.
        try Qemu.io(path, commands.reversed().filter { !$0.contains("-c") })
        try Qemu.image(["snapshot", "-c", "b", path])
        try Qemu.image(["snapshot", "-d", "a", path])
      }
      let file = try OpenFile(path)
      let report = try Qcow2Check.run(file.source, try Qcow2Header(file.source))
      #expect(report.isClean, "\(report.findings)")
      let other = try Qemu.json(["check", "-f", "qcow2", path])
      #expect(report.allocatedClusters == other["allocated-clusters"] as? UInt64 ?? 0)
      #expect(report.compressedClusters == other["compressed-clusters"] as? UInt64 ?? 0)
      #expect(report.totalClusters == other["total-clusters"] as? UInt64)
      #expect(report.imageEnd == other["image-end-offset"] as? UInt64)
    }
  }

  @Test func bitmapsAreCounted() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      try Qemu.image(["create", "-q", "-f", "qcow2", path, "64M"])
      try Qemu.image(["bitmap", "--add", path, "marks"])
      try Qemu.image(["bitmap", "--add", "-g", "4k", path, "more marks"])
      try Qemu.io(path, ["write 0 1M"])
      let file = try OpenFile(path)
      let header = try Qcow2Header(file.source)
      #expect(header.bitmaps?.count == 2)
      let report = try Qcow2Check.run(file.source, header)
      #expect(report.isClean, "\(report.findings)")
    }
  }

  /// A process was killed before it stored the refcounts that it had deferred.
  @Test func aDirtyImageHasErrors() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      try Qemu.image(["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "8M"])
      _ = try Qemu.run("qemu-io", ["-f", "qcow2", "-c", "write 0 1M", "-c", "flush", "-c", "abort", path])
      let file = try OpenFile(path)
      let header = try Qcow2Header(file.source)
      #expect(header.incompatible.contains(.dirty))
      let report = try Qcow2Check.run(file.source, header)
      #expect(report.corruptions > 0)
      #expect(try Qemu.check(path).status == 2)
    }
  }

  /// Offsets in a fresh image with one megabyte written: 64 KiB clusters, refcount block at 2, L2 table at 4, data from 5 on.
  static let damages: [(String, Int, UInt64, Int32)] = [
    ("a leak", 0x40000, 0, 3),
    ("a count too high", 0x20000 + 6 * 2, 0x0002_0001_0001_0001, 2),
    ("a count too low", 0x20000 + 6 * 2, 0x0000_0001_0001_0001, 2),
    ("no copied bit", 0x40000, 0x0000_0000_0005_0000, 2),
    ("data twice", 0x40000, 0x8000_0000_0006_0000, 2),
    ("data past the end", 0x40000, 0x8000_0100_0000_0000, 2),
    ("data within a cluster", 0x40000, 0x8000_0000_0005_0200, 2),
    ("an L2 table past the end", 0x30000, 0x8000_0100_0000_0000, 2),
  ]

  @Test(arguments: damages) func damageIsFoundByBoth(name: String, place: Int, word: UInt64, status: Int32) throws {
    try withDirectory { folder in
      let path = folder + "/image"
      try Qemu.image(["create", "-q", "-f", "qcow2", path, "8M"])
      try Qemu.io(path, ["write 0 1M"])
      let handle = try #require(FileHandle(forUpdatingAtPath: path))
      try handle.seek(toOffset: UInt64(place))
      try handle.write(contentsOf: Data((0..<8).map { UInt8(truncatingIfNeeded: word >> (56 - UInt64($0) * 8)) }))
      try handle.close()
      #expect(try Qemu.check(path).status == status)
      let file = try OpenFile(path)
      let found: Int32
      do throws(Qcow2Fault) {
        let report = try Qcow2Check.run(file.source, try Qcow2Header(file.source))
        found = report.corruptions > 0 ? 2 : report.leaks > 0 ? 3 : 0
      } catch { found = 2 }
      #expect(found == status)
    }
  }
}
