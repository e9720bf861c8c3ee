/// Snapshots that this program and QEMU create, apply and delete in turn, in the same images.
import CLinux
import Foundation
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2SnapshotTests {
  private static let size = 768 << 10

  static let options = [
    "cluster_size=64k", "cluster_size=4k", "cluster_size=512", "cluster_size=16k,extended_l2=on", "cluster_size=4k,compat=0.10",
    "cluster_size=1k,refcount_bits=32", "cluster_size=2k,refcount_bits=64", "cluster_size=4k,compression_type=zstd",
    "cluster_size=4k,lazy_refcounts=on",
  ]

  /// The expected disk and snapshots.
  private struct Model {
    var disk: [UInt8] = []
    var snapshots: [String: [UInt8]] = [:]
  }

  private func compare(_ folder: ImageFolder, _ model: Model, _ what: String) throws {
    let check = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("a")]).wait()
    try #require(check.status == 0, "\(what): \(check.output)")
    let image = FileImage(bytes: try folder.bytes("a"))
    let report = try Qcow2Check.run(MemorySource(image.bytes), try Qcow2Header(MemorySource(image.bytes)))
    try #require(report.isClean, "\(what): \(report.findings)")
    try #require(try folder.content("a") == model.disk, "\(what): the disk")
    let names = try Qcow2Header(MemorySource(image.bytes)).snapshots(MemorySource(image.bytes)).map(\.name)
    try #require(names.sorted() == model.snapshots.keys.sorted(), "\(what)")
    for (name, content) in model.snapshots {
      try #require(try folder.content("a", snapshot: name) == content, "\(what): \(name)")
    }
  }

  @Test(arguments: options) func ourSnapshotsAndTheirsAreTheSame(options: String) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "\(Self.size)", ["-o", options])
    var chance = Chance(UInt64(Self.options.firstIndex(of: options) ?? 0))
    try folder.io("a", ["write -c -P 201 0 64k", "write -P 202 80k 60k", "write -z 128k 64k"])
    var model = Model(disk: try folder.content("a"))
    var made = 0
    for step in 0..<14 {
      let isOurs = Bool.random(using: &chance)
      let (from, count) = (Int.random(in: 0..<Self.size / 512, using: &chance), Int.random(in: 1...200, using: &chance))
      let (offset, bytes) = (from * 512, min(count, Self.size / 512 - from) * 512)
      var what = "step \(step), \(isOurs ? "ours" : "QEMU's"): "
      let some = model.snapshots.keys.sorted().randomElement(using: &chance)
      switch Int.random(in: 0..<8, using: &chance) {
      case 0, 1, 2:
        what += "write"
        if isOurs {
          try folder.writing("DIR/a") { #expect($0.change(.write, at: offset, count: bytes, value: UInt8(step + 1)) == 0) }
        } else {
          try folder.io("a", ["write -P \(step + 1) \(offset) \(bytes)"])
        }
        model.disk.replaceSubrange(offset..<offset + bytes, with: repeatElement(UInt8(step + 1), count: bytes))
      case 3, 4:
        made += 1
        what += "create \(made)"
        if isOurs {
          try Qcow2Editor(path: folder.place("a")).createSnapshot("s\(made)", date: (1, 2))
        } else {
          try folder.run(["qemu-img", "snapshot", "-c", "s\(made)", "DIR/a"])
        }
        model.snapshots["s\(made)"] = model.disk
      case 5:
        guard let some else { continue }
        what += "apply \(some)"
        if isOurs {
          try Qcow2Editor(path: folder.place("a")).applySnapshot(some)
        } else {
          try folder.run(["qemu-img", "snapshot", "-a", some, "DIR/a"])
        }
        model.disk = try #require(model.snapshots[some])
      default:
        guard let some else { continue }
        what += "delete \(some)"
        if isOurs {
          try Qcow2Editor(path: folder.place("a")).deleteSnapshot(some)
        } else {
          try folder.run(["qemu-img", "snapshot", "-d", some, "DIR/a"])
        }
        model.snapshots[some] = nil
      }
      try compare(folder, model, what)
    }
    for name in model.snapshots.keys.sorted() {
      try Qcow2Editor(path: folder.place("a")).deleteSnapshot(name)
      model.snapshots[name] = nil
      try compare(folder, model, "the end: delete \(name)")
    }
  }

  /// If a disk was resized between two snapshots, applying one brings back its size.
  @Test func aSnapshotHasItsOwnSize() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "1M", ["-o", "cluster_size=4k"])
    try folder.io("a", ["write -P 1 0 1M"])
    try Qcow2Editor(path: folder.place("a")).createSnapshot("small", date: (1, 2))
    try folder.run(["qemu-img", "resize", "-q", "-f", "qcow2", "DIR/a", "9M"])
    try folder.io("a", ["write -P 2 8M 1M"])
    try Qcow2Editor(path: folder.place("a")).createSnapshot("large", date: (1, 2))
    for (name, size, last) in [("small", 1 << 20, 1), ("large", 9 << 20, 2)] as [(String, Int, UInt8)] {
      try Qcow2Editor(path: folder.place("a")).applySnapshot(name)
      let content = try folder.content("a")
      #expect(content.count == size && content.last == last && content.first == 1)
      let check = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("a")]).wait()
      #expect(check.status == 0, "\(check.output)")
    }
  }

  /// Space that only a deleted snapshot used goes back to the file system.
  @Test func deletingGivesSpaceBack() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "8M")
    try folder.io("a", ["write -P 1 0 8M"])
    try Qcow2Editor(path: folder.place("a")).createSnapshot("s", date: (1, 2))
    try folder.io("a", ["write -P 2 0 8M"])
    func blocks() throws -> Int {
      var info = stat()
      try #require(unsafe stat(folder.place("a"), &info) == 0)
      return Int(info.st_blocks) * 512
    }
    #expect(try blocks() >= 16 << 20)
    try Qcow2Editor(path: folder.place("a")).deleteSnapshot("s")
    #expect(try blocks() < 9 << 20)
    #expect(try folder.content("a") == [UInt8](repeating: 2, count: 8 << 20))
  }

  @Test func whatIsInUseIsNotChanged() throws {
    let folder = try ImageFolder()
    try folder.create("a", "1M")
    let place = folder.place("a")
    let before = try folder.bytes("a")
    do {
      let reader = try folder.open("DIR/a")
      #expect(throws: ImageToolFailure.inUse(path: place)) { try Qcow2Editor(path: place) }
      withExtendedLifetime(reader) {}
    }
    let first = try Qcow2Editor(path: place)
    #expect(throws: ImageToolFailure.inUse(path: place)) { try Qcow2Editor(path: place) }
    withExtendedLifetime(first) {}
    #expect(try folder.bytes("a") == before)
  }

  @Test func whatQEMUHasOpenIsNotChanged() throws {
    let folder = try ImageFolder()
    try folder.create("a", "4M")
    let place = folder.place("a")
    let reader = try ChildProgram(["/usr/bin/env", "qemu-io", "-r", "-f", "qcow2", "-c", "sleep 3600000", place])
    defer { _ = reader.end(SIGKILL) }
    try waitUntil("qemu-io has it open: \(reader.output)") {
      do {
        _ = try Qcow2Editor(path: place)
        return false
      } catch ImageToolFailure.inUse { return true }
    }
  }

  @Test func mistakesAreNamed() throws {
    let folder = try ImageFolder()
    try folder.create("a", "1M")
    try folder.create("one", "1M", ["-o", "refcount_bits=1"])
    try folder.io("one", ["write -P 1 0 64k"])
    try folder.create("empty", "0")
    try folder.create("external", "1M", ["-o", "data_file=\(folder.place("data"))"])
    try folder.create("broken", "1M")
    try folder.put("broken", 0x20000, [0, 0])
    let editor = try Qcow2Editor(path: folder.place("a"))
    try editor.createSnapshot("s", date: (1, 2))
    let before = try folder.bytes("a")
    #expect { try editor.createSnapshot("s", date: (1, 2)) } throws: { "\($0)".contains("has a snapshot 's' already") }
    #expect { try editor.createSnapshot("", date: (1, 2)) } throws: { "\($0)".contains("1 to 255 bytes") }
    #expect { try editor.deleteSnapshot("none") } throws: { "\($0)".contains("has no snapshot 'none'") }
    #expect { try editor.applySnapshot("none") } throws: { "\($0)".contains("has no snapshot 'none'") }
    #expect(try folder.bytes("a") == before)
    for (name, sentence) in [
      ("one", "refcounts have 1 bits"), ("empty", "size 0"), ("external", "external file"), ("broken", "errors: repair it"),
      ("none", "cannot be opened"), ("", "not a regular file"),
    ] {
      let before = name.isEmpty || name == "none" ? [] : try folder.bytes(name)
      #expect(Comment(rawValue: name)) {
        try Qcow2Editor(path: folder.place(name)).createSnapshot("s", date: (1, 2))
      } throws: { "\($0)".contains(sentence) }
      if !before.isEmpty { #expect(try folder.bytes(name) == before) }
    }
  }
}
