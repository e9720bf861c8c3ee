/// What commands that change a chain refuse, and that they have changed nothing by then.
import Foundation
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

extension Qcow2ToolCrashTests {
  private func commit(_ words: String, in folder: ImageFolder, keepsOverlay: Bool = false) throws {
    try Qcow2Commit.run(try folder.location(words), keepsOverlay: keepsOverlay) { _, _ in }
  }

  /// Expects a refusal that leaves all files as they were.
  private func refused(
    _ folder: ImageFolder, _ files: [String], _ sentence: String, at place: SourceLocation = #_sourceLocation,
    _ body: () throws -> Void
  ) throws {
    let before = try files.map(folder.bytes)
    var said = "nothing"
    do { try body() } catch { said = "\(error)" }
    #expect(said.contains(sentence), "\(said)", sourceLocation: place)
    #expect(try files.map(folder.bytes) == before, "\(sentence)", sourceLocation: place)
  }

  /// When a base grows, the content of a longer file under it would appear.
  @Test(arguments: [10, 20]) func aBaseGrowsOnlyOverZeroes(under: Int) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.run(["qemu-img", "create", "-q", "-f", "raw", "DIR/under", "\(under)M"])
    try folder.io("under", ["write -P 1 \(under * 3 / 4)M 64k"], format: "raw")
    try folder.create("base", "10M", ["-b", folder.place("under"), "-F", "raw"])
    try folder.create("a", "20M", ["-b", folder.place("base"), "-F", "qcow2"])
    try folder.io("a", ["write -P 2 0 64k"])
    let disk = try folder.content("a")
    let words = "DIR/a?backing=qcow2:DIR/base&backing=raw:DIR/under"
    if under == 20 {
      try refused(folder, ["a", "base", "under"], "qemu-img resize") { try commit(words, in: folder) }
      try folder.run(["qemu-img", "resize", "-q", "-f", "qcow2", "DIR/base", "20M"])
    }
    try commit(words, in: folder)
    #expect(try folder.content("a") == disk && folder.content("base") == disk)
  }

  /// The rest of the last cluster is not part of the disk until the disk grows.
  @Test(arguments: ["cluster_size=64k", "cluster_size=64k,extended_l2=on"], [60, 61]) func whatIsBehindTheDiskDoesNotAppear(
    options: String, kilobytes: Int
  ) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("base", "\(kilobytes)k", ["-o", options])
    try folder.io("base", ["write -P 1 0 \(kilobytes)k"])
    let bytes = try folder.bytes("base")
    let first = (0...bytes.count >> 16).first { bytes.dropFirst($0 << 16).prefix(8) == [UInt8](repeating: 1, count: 8)[...] }
    let place = try #require(first) << 16 + kilobytes << 10 + 512
    try folder.create("a", "1M", ["-b", folder.place("base"), "-F", "qcow2"])
    try folder.put("base", UInt64(place), [9])
    let words = "DIR/a?backing=qcow2:DIR/base"
    if options.contains("extended"), kilobytes == 60 {
      // In a subcluster that is not allocated.
      try commit(words, in: folder)
      #expect(try folder.content("a") == [UInt8](repeating: 1, count: 60 << 10) + [UInt8](repeating: 0, count: 964 << 10))
    } else {
      try refused(folder, ["a", "base"], "beyond the end of its disk") { try commit(words, in: folder) }
    }
  }

  /// Errors in an overlay are found before any of its data is in the base.
  @Test(arguments: ["raw", "qcow2"], [false, true]) func aBadOverlayIsNotCommitted(format: String, keeps: Bool) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.run(["qemu-img", "create", "-q", "-f", format, "DIR/base", "1M"])
    try folder.create("a", "1M", ["-b", folder.place("base"), "-F", format])
    try folder.io("a", ["write -P 2 0 64k"])
    let good = try folder.bytes("a")
    let words = "DIR/a?backing=\(format):DIR/base"
    // A refcount of 0, and the corrupt bit.
    for (offset, bytes, sentence) in [(0x20000, [0, 0], "errors"), (79, [2], "marked as corrupt")]
      as [(UInt64, [UInt8], String)]
    {
      try Data(good).write(to: URL(fileURLWithPath: folder.place("a")))
      try folder.put("a", offset, bytes)
      try refused(folder, ["a", "base"], sentence) { try commit(words, in: folder, keepsOverlay: keeps) }
      try refused(folder, ["a", "base"], sentence) { try Qcow2Rebase.run(try folder.location(words), to: nil) { _, _ in } }
    }
    guard format == "qcow2" else { return }
    try Data(good).write(to: URL(fileURLWithPath: folder.place("a")))
    try folder.put("base", 0x20000, [0, 0])
    try refused(folder, ["a", "base"], "errors") { try commit(words, in: folder, keepsOverlay: keeps) }
  }

  @Test func aSlipInTheNamesIsNoticed() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("base", "1M")
    try folder.overlay("a", over: "base", "qcow2")
    for (words, sentence) in [
      ("backing=raw:DIR/base", "of the format 'qcow2', and it was named as raw"),
      ("backing=qcow2:DIR/base&snapshot=s", "leave 'snapshot'"), ("backing=qcow2:DIR/base&data-file=DIR/a", "leave 'snapshot'"),
      ("backing=qcow2:DIR/base&backing=raw:DIR/a", "names no backing file"),
    ] {
      try refused(folder, ["a", "base"], sentence) { try commit("DIR/a?" + words, in: folder) }
    }
    try folder.run(["qemu-img", "create", "-q", "-f", "raw", "DIR/flat", "1M"])
    try folder.overlay("b", over: "flat", "raw")
    try refused(folder, ["b", "flat"], "names no backing file") {
      try commit("DIR/b?backing=raw:DIR/flat&backing=raw:DIR/other", in: folder)
    }
  }

  /// Bitmaps are valid until a writer opens the image: a refused rebase has not opened it.
  @Test func aRebaseThatIsRefusedKeepsBitmaps() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.run(["qemu-img", "create", "-q", "-f", "raw", "DIR/base", "1M"])
    try folder.overlay("a", over: "base", "raw")
    try folder.run(["qemu-img", "bitmap", "--add", "DIR/a", "b"])
    #expect(try folder.bytes("a")[95] & 1 == 1)
    func rebase() throws {
      let backing = Qcow2Rebase.Backing(name: "none", path: folder.place("none"), format: .raw)
      try Qcow2Rebase.run(try folder.location("DIR/a?backing=raw:DIR/base"), to: backing) { _, _ in }
    }
    try refused(folder, ["a"], "cannot be opened", rebase)
    try Qcow2Editor(path: folder.place("a")).createSnapshot("s", date: (1, 2))
    try refused(folder, ["a"], "internal snapshots", rebase)
  }

  /// Reading units that differ takes one wait for many, not one for each.
  @Test func aRebaseJoinsWhatDiffers() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try Data(repeating: 5, count: 4 << 20).write(to: URL(fileURLWithPath: folder.place("base")))
    try folder.overlay("a", over: "base", "raw", ["-o", "cluster_size=128k,extended_l2=on"])
    let log = Qcow2Log()
    try Qcow2Rebase.run(try folder.location("DIR/a?backing=raw:DIR/base"), to: nil, witness: log) { _, _ in }
    #expect(try folder.content("a") == [UInt8](repeating: 5, count: 4 << 20))
    let syncs = log.calls.count { $0 == .sync }
    #expect(syncs < 20, "\(syncs) for 1024 units")
  }
}
