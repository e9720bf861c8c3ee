/// A tool that changes an image is killed, or power is cut, at any moment: the image is consistent, and has either the old or
/// the new content.
///
/// All calls of a tool are recorded. A kill leaves the first of them; a power cut leaves everything before a sync, and any
/// subset of the sectors written after it.
import Foundation
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2ToolCrashTests {
  private static let size = 384 << 10

  static let options = [
    "cluster_size=64k", "cluster_size=4k", "cluster_size=512", "cluster_size=16k,extended_l2=on", "cluster_size=4k,compat=0.10",
    "cluster_size=1k,refcount_bits=32", "cluster_size=1k,refcount_bits=64",
  ]

  /// Everything that an image contains.
  private struct State: Equatable {
    var disk: [UInt8]
    var snapshots: [String: [UInt8]]
    var backing: String?
    var format: String?

    init(_ image: FileImage, _ backing: [String: [UInt8]] = [:]) throws {
      let source = MemorySource(image.bytes)
      let header = try Qcow2Header(source)
      (self.backing, format) = (header.backingText.map { String($0.split(separator: "/").last ?? "") }, header.backingFormat)
      let under = self.backing.flatMap { backing[$0] } ?? []
      disk = try image.content(over: under)
      snapshots = [:]
      for snapshot in try header.snapshots(source) {
        snapshots[snapshot.name] = try image.content(over: under, snapshot: snapshot.name)
      }
    }
  }

  /// - Parameter mayLeak: leaked clusters are no problem, as in a disk that is being written.
  private func problem(of image: FileImage, mayLeak: Bool = false) throws -> String? {
    let source = MemorySource(image.bytes)
    let report = try Qcow2Check.run(source, try Qcow2Header(source))
    guard report.corruptions == 0, report.failures == 0, mayLeak || report.leaks == 0 else { return report.findings.first }
    return nil
  }

  /// After which of `count` calls there is a kill: all, or some if there are many, always including the last ones.
  private func kills(_ count: Int, _ chance: inout Chance) -> Set<Int> {
    guard count > 24 else { return Set(0..<count) }
    return Set((0..<count).shuffled(using: &chance).prefix(18)).union(count - 6..<count)
  }

  /// Checks the images that a kill or a power cut can leave.
  ///
  /// - Returns: the number of images.
  private func crash(
    _ first: FileImage, _ calls: [Qcow2Call], _ chance: inout Chance, _ look: (FileImage, String) throws -> Void
  ) throws -> Int {
    var (image, stable, from, looked) = (first, first, 0, 0)
    let kills = kills(calls.count, &chance)
    for (number, call) in calls.enumerated() {
      image.apply(call)
      if kills.contains(number) {
        try look(image, "killed after call \(number + 1) of \(calls.count)")
        looked += 1
      }
      guard call == .sync || number == calls.count - 1 else { continue }
      for percent in [50, 10, 90] {
        var cut = stable
        for call in calls[from...number] { cut.apply(call) { Int.random(in: 0..<100, using: &chance) < percent } }
        try look(cut, "power cut before call \(number + 1) of \(calls.count), \(percent) %")
        looked += 1
      }
      (stable, from) = (image, number + 1)
    }
    return looked
  }

  enum Change: String, CaseIterable, Sendable {
    case create, delete, apply, empty, grow
  }

  @Test(arguments: options, Change.allCases) func aChangeIsThereAsAWholeOrNotAtAll(options: String, change: Change) throws {
    // In version 2 images made by QEMU, snapshots have their sizes, too.
    let folder = try ImageFolder(in: Medium.memory.folder)
    var chance = Chance(UInt64(Self.options.firstIndex(of: options) ?? 0) &* 8 &+ UInt64(change.rawValue.utf8.count))
    try folder.create("a", "\(Self.size)", ["-o", options])
    try folder.io("a", ["write -c -P 201 0 64k", "write -P 202 80k 60k"])
    try folder.run(["qemu-img", "snapshot", "-c", "first", "DIR/a"])
    try folder.io("a", ["write -P 203 100k 30k", "write -z 4k 8k"])
    try folder.run(["qemu-img", "snapshot", "-c", "second", "DIR/a"])
    try folder.io("a", ["write -P 204 90k 100k"])
    let before = FileImage(bytes: try folder.bytes("a"))
    let log = Qcow2Log()
    do {
      let editor = try Qcow2Editor(path: folder.place("a"), witness: log)
      switch change {
      case .create: try editor.createSnapshot("third", date: (1, 2))
      case .delete: try editor.deleteSnapshot("first")
      case .apply: try editor.applySnapshot("first")
      case .empty: try editor.empty()
      case .grow: try editor.grow(to: UInt64(Self.size) * 40, over: 0)
      }
    }
    let (old, new) = (try State(before), try State(FileImage(bytes: try folder.bytes("a"))))
    #expect(old != new)
    var (olds, news) = (0, 0)
    let looked = try crash(before, log.calls, &chance) { image, moment in
      try #require(try problem(of: image) == nil, "\(moment)")
      let state = try State(image)
      try #require(state == old || state == new, "\(moment)")
      if state == old { olds += 1 } else { news += 1 }
    }
    #expect(looked == olds + news && olds > 0 && news > 0)
    let check = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("a")]).wait()
    #expect(check.status == 0, "\(check.output)")
  }

  /// The check itself works: if the header may be written before the rest is stable, some images are broken.
  @Test func aSyncThatIsLeftOutIsFound() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "\(Self.size)", ["-o", "cluster_size=4k"])
    try folder.io("a", ["write -P 202 80k 60k"])
    let before = FileImage(bytes: try folder.bytes("a"))
    let log = Qcow2Log()
    try Qcow2Editor(path: folder.place("a"), witness: log).createSnapshot("s", date: (1, 2))
    var (chance, broken) = (Chance(3), 0)
    _ = try crash(before, log.calls.filter { $0 != .sync }, &chance) { image, _ in
      if (try? problem(of: image)) != .some(nil) { broken += 1 }
    }
    #expect(broken > 0)
  }

  /// Every call fails once: the image has the old or the new content.
  @Test func aCallThatFailsLeavesAnImage() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("first", "\(Self.size)", ["-o", "cluster_size=4k"])
    try folder.io("first", ["write -P 202 80k 60k"])
    let bytes = try folder.bytes("first")
    let old = try State(FileImage(bytes: bytes))
    var number = 0
    while true {
      number += 1
      try Data(bytes).write(to: URL(fileURLWithPath: folder.place("a")))
      let (log, failing) = (Qcow2Log(), number)
      log.fail { asked, _ in asked == failing ? ENOSPC : 0 }
      do {
        try Qcow2Editor(path: folder.place("a"), witness: log).createSnapshot("s", date: (1, 2))
        break
      } catch ImageToolFailure.cannotStore {
      } catch ImageToolFailure.fault(_, .cannotStore) {
        #expect(try folder.bytes("a") == bytes)
      }
      let image = FileImage(bytes: try folder.bytes("a"))
      #expect(try problem(of: image) == nil)
      let state = try State(image)
      #expect(state.disk == old.disk)
    }
    #expect(number > 8)
  }

  static let headers = ["cluster_size=512", "cluster_size=1k", "cluster_size=64k", "cluster_size=4k,compat=0.10"]

  @Test(arguments: headers) func aNameIsTheOldOrTheNew(options: String) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    var chance = Chance(9)
    let bases = ["base": [UInt8](repeating: 7, count: 4096), "other-base": [UInt8](repeating: 8, count: 4096)]
    for (name, content) in bases { try Data(content).write(to: URL(fileURLWithPath: folder.place(name))) }
    try folder.create("a", "64k", ["-o", options, "-b", "base", "-F", "raw", "-u"])
    for (name, format) in [("other-base", ImageFormat.qcow2), (nil, nil), ("base", .raw)] as [(String?, ImageFormat?)] {
      let before = FileImage(bytes: try folder.bytes("a"))
      let log = Qcow2Log()
      try Qcow2Editor(path: folder.place("a"), witness: log).rename(backing: name, format: format)
      let (old, new) = (try State(before, bases), try State(FileImage(bytes: try folder.bytes("a")), bases))
      #expect(new.backing == name && new.format == format?.rawValue)
      _ = try crash(before, log.calls, &chance) { image, moment in
        try #require(try problem(of: image) == nil, "\(moment)")
        let state = try State(image, bases)
        try #require(state == old || state == new, "\(moment): \(state.backing ?? "none") \(state.format ?? "none")")
      }
      let info = try ChildProgram(["/usr/bin/env", "qemu-img", "info", "-f", "qcow2", folder.place("a")]).wait()
      #expect(info.output.contains("backing file: \(name ?? "")") == (name != nil), "\(info.output)")
      #expect(info.output.contains("backing file format: \(format?.rawValue ?? "")") == (name != nil), "\(info.output)")
    }
    let check = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("a")]).wait()
    #expect(check.status == 0, "\(check.output)")
  }

  // MARK: Commit and rebase

  /// Calls on several files, in the order in which they took effect.
  private final class Order: @unchecked Sendable {
    final class Part: Qcow2Witness {
      let order: Order
      let file: Int

      init(_ order: Order, _ file: Int) { (self.order, self.file) = (order, file) }

      func witness(_ call: Qcow2Call, _ perform: () -> Int) -> Int {
        let result = perform()
        guard result >= 0 else { return result }
        if case .store(let offset, let bytes) = call {
          order.calls.append((file, .store(offset: offset, Array(bytes.prefix(result)))))
        } else {
          order.calls.append((file, call))
        }
        return result
      }
    }

    // One thread makes all calls.
    var calls: [(file: Int, call: Qcow2Call)] = []
  }

  static let bases = ["raw", "cluster_size=4k", "cluster_size=16k,extended_l2=on"]

  @Test(arguments: bases, options) func aCommitIsTheSameDiskThroughout(base: String, options: String) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    var chance = Chance(UInt64(options.utf8.count))
    let format = base == "raw" ? "raw" : "qcow2"
    let words = ["qemu-img", "create", "-q", "-f", format] + (format == "raw" ? [] : ["-o", base])
    try folder.run(words + ["DIR/base", "\(Self.size - 70 * 512)"])
    try folder.io("base", ["write -P 101 0 200k", "write -P 102 250k 30k"], format: format)
    try folder.create("a", "\(Self.size)", ["-o", options, "-b", folder.place("base"), "-F", format])
    try folder.io("a", ["write -P 202 80k 60k", "write -z 10k 40k", "write -P 203 370k 14k"])
    let (overlay, under) = (FileImage(bytes: try folder.bytes("a")), FileImage(bytes: try folder.bytes("base")))
    let disk = try folder.content("a")
    let order = Order()
    try Qcow2Commit.run(
      try folder.location("DIR/a?backing=\(format):DIR/base"), keepsOverlay: false,
      witnesses: (Order.Part(order, 0), Order.Part(order, 1))
    ) { _, _ in }
    func content(_ image: FileImage) throws -> [UInt8] { format == "raw" ? image.bytes : try image.content(over: []) }
    // Afterwards all data is in the base, and none in the overlay.
    #expect(try content(FileImage(bytes: try folder.bytes("base"))) == disk)
    #expect(try folder.content("a") == disk)
    #expect(try FileImage(bytes: try folder.bytes("a")).content(over: []) == [UInt8](repeating: 0, count: Self.size))
    for name in format == "raw" ? ["a"] : ["a", "base"] {
      let check = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place(name)]).wait()
      #expect(check.status == 0, "\(check.output)")
    }
    // At every moment before that, the overlay shows the old disk.
    var (killed, stable, from) = ([overlay, under], [overlay, under], [0, 0])
    func look(_ files: [FileImage], _ moment: String) throws {
      try #require(try problem(of: files[0]) == nil, "\(moment)")
      if format != "raw" { try #require(try problem(of: files[1], mayLeak: true) == nil, "\(moment)") }
      try #require(try files[0].content(over: try content(files[1])) == disk, "\(moment)")
    }
    let calls = order.calls
    let kills = kills(calls.count, &chance)
    for (number, (file, call)) in calls.enumerated() {
      killed[file].apply(call)
      if kills.contains(number) { try look(killed, "killed after call \(number + 1) of \(calls.count)") }
      guard call == .sync || number == calls.count - 1 else { continue }
      for percent in [50, 10, 90] {
        var files = stable
        for (at, (file, call)) in calls[...number].enumerated() where at >= from[file] {
          files[file].apply(call) { Int.random(in: 0..<100, using: &chance) < percent }
        }
        try look(files, "power cut before call \(number + 1) of \(calls.count)")
      }
      // A sync covers only its own file.
      (stable[file], from[file]) = (killed[file], number + 1)
    }
  }

  @Test(arguments: ["raw", "qcow2", "none"], options) func aRebaseIsTheSameDiskThroughout(new: String, options: String) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    var chance = Chance(UInt64(options.utf8.count))
    for (name, format, size, commands) in [
      ("base", "raw", Self.size - 70 * 512, ["write -P 101 0 200k", "write -P 102 250k 30k"]),
      ("new", new == "qcow2" ? "qcow2" : "raw", Self.size - 200 * 512, ["write -P 101 0 100k", "write -P 103 200k 60k"]),
    ] {
      try folder.run(["qemu-img", "create", "-q", "-f", format, "DIR/\(name)", "\(size)"])
      try folder.io(name, commands, format: format)
    }
    var bases = ["base": try folder.bytes("base")]
    bases["new"] = new == "qcow2" ? try folder.content("new") : try folder.bytes("new")
    try folder.create("a", "\(Self.size)", ["-o", options, "-b", folder.place("base"), "-F", "raw"])
    try folder.io("a", ["write -P 202 80k 60k", "write -z 10k 40k"])
    let first = FileImage(bytes: try folder.bytes("a"))
    let disk = try folder.content("a")
    let log = Qcow2Log()
    let backing = ImageFormat(rawValue: new).map { Qcow2Rebase.Backing(name: "new", path: folder.place("new"), format: $0) }
    try Qcow2Rebase.run(try folder.location("DIR/a?backing=raw:DIR/base"), to: backing, witness: log) { _, _ in }
    #expect(try folder.content("a") == disk)
    let end = try State(FileImage(bytes: try folder.bytes("a")), bases)
    #expect(end.backing == (new == "none" ? nil : "new") && end.disk == disk)
    let check = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("a")]).wait()
    #expect(check.status == 0, "\(check.output)")
    _ = try crash(first, log.calls, &chance) { image, moment in
      try #require(try problem(of: image, mayLeak: true) == nil, "\(moment)")
      try #require(try State(image, bases).disk == disk, "\(moment)")
    }
  }

  /// Data that both have is not copied.
  @Test func aRebaseCopiesWhatDiffers() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    let bytes = [UInt8](repeating: 5, count: 8 << 20)
    var other = bytes
    other[3 << 20] = 6
    for (name, content) in [("base", bytes), ("new", other)] {
      try Data(content).write(to: URL(fileURLWithPath: folder.place(name)))
    }
    try folder.overlay("a", over: "base", "raw")
    let backing = Qcow2Rebase.Backing(name: folder.place("new"), path: folder.place("new"), format: .raw)
    var last: (UInt64, UInt64) = (0, 0)
    try Qcow2Rebase.run(try folder.location("DIR/a?backing=raw:DIR/base"), to: backing) { last = ($0, $1) }
    #expect(last == (8 << 20, 8 << 20))
    let source = MemorySource(try folder.bytes("a"))
    #expect(try Qcow2Check.run(source, try Qcow2Header(source)).allocatedClusters == 1)
    #expect(try folder.content("a") == bytes)
  }
}
