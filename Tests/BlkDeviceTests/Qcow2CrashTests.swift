/// Power is cut while an image is being written: the image stays consistent, and flushed data is there.
///
/// Every store and every sync of random histories is recorded. Then, for each sync, images are made of everything that was stable before
/// it and any subset of the sectors that were not. Each has to be clean or to have leaks at most, and each sector has to have
/// what it had when the last flush was answered, or what was written since.
///
/// `VMM_BLK_CRASH_IMAGES` sets the total number of images.
import Foundation
import Glibc
import GuestDriver
import Qcow2
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct Qcow2CrashTests {
  struct Kind: Sendable, CustomStringConvertible {
    var name: String
    var clusterBits: UInt32 = 12
    var isExtended = false
    var hasBacking = false
    /// Options of `qemu-img create` and commands of `qemu-io` before and after a snapshot; `nil`: this project makes the image.
    var qemu: (options: String, first: [String], second: [String])?
    var description: String { name }
  }

  static let kinds = [
    Kind(name: "4 KiB"), Kind(name: "512 bytes", clusterBits: 9), Kind(name: "64 KiB", clusterBits: 16),
    Kind(name: "4 KiB over a backing file", hasBacking: true),
    Kind(name: "512 bytes over one", clusterBits: 9, hasBacking: true),
    Kind(name: "64 KiB over one", clusterBits: 16, hasBacking: true),
    Kind(name: "subclusters", clusterBits: 14, isExtended: true),
    Kind(name: "subclusters over a backing file", clusterBits: 14, isExtended: true, hasBacking: true),
    Kind(name: "large subclusters over one", clusterBits: 17, isExtended: true, hasBacking: true),
    Kind(
      name: "compressed, and a snapshot",
      qemu: ("cluster_size=4k", ["write -c -P 201 0 64k", "write -P 202 80k 60k"], ["write -P 203 100k 30k"])),
    Kind(
      name: "subclusters, compressed, and a snapshot",
      qemu: (
        "cluster_size=16k,extended_l2=on", ["write -c -P 201 0 64k", "write -P 202 80k 60k"],
        ["write -P 203 100k 30k", "write -z 4k 8k"]
      )),
    Kind(
      name: "version 2 over a backing file", hasBacking: true,
      qemu: ("cluster_size=4k,compat=0.10", ["write -P 201 20k 50k"], ["write -P 203 100k 30k"])),
    Kind(
      name: "zeroes that have a place, over a backing file", hasBacking: true,
      qemu: ("cluster_size=4k", ["write -P 201 0 256k", "write -z 0 128k"], [])),
    Kind(
      name: "one bit of refcount", qemu: ("cluster_size=1k,refcount_bits=1", ["write -P 201 0 40k"], [])),
    Kind(name: "wide refcounts", qemu: ("cluster_size=1k,refcount_bits=64", ["write -P 201 0 40k"], [])),
  ]

  private static let size = 384 << 10
  /// Total number of images, over all kinds.
  private static let images = ProcessInfo.processInfo.environment["VMM_BLK_CRASH_IMAGES"].flatMap(Int.init) ?? 240

  @Test(arguments: kinds, [false, true]) func whateverReachedTheMediumIsAnImage(kind: Kind, fails: Bool) throws {
    guard kind.qemu == nil || Host.hasQemuImg else { return }
    let share = max(1, Self.images / (Self.kinds.count * 2))
    var (seed, made) = (UInt64(Self.kinds.firstIndex { $0.name == kind.name } ?? 0) * 2 + (fails ? 1 : 0), 0)
    while made < share {
      made += try history(kind, Chance(seed), images: min(share - made, 60), fails: fails)
      seed += 1000
    }
  }

  /// - Returns: the number of images checked.
  private func history(_ kind: Kind, _ chance: Chance, images: Int, fails: Bool) throws -> Int {
    var chance = chance
    let folder = try ImageFolder(in: Medium.memory.folder)
    let backing = kind.hasBacking ? Self.backing() : []
    if kind.hasBacking { try Data(backing).write(to: URL(fileURLWithPath: folder.place("base"))) }
    try make(kind, folder)
    let first = FileImage(bytes: try folder.bytes("a"))
    let log = Qcow2Log()
    let image = try folder.openToWrite(kind.hasBacking ? "DIR/a?backing=raw:DIR/base" : "DIR/a", log)
    let disk = try #require(image.chain)
    let before = try first.content(over: backing)
    var steps: [Step] = []
    if fails {
      let rate = UInt64.random(in: 5...40, using: &chance)
      let salt = chance.next()
      log.fail { number, call in
        var own = Chance(salt &+ UInt64(number))
        guard own.next() % rate == 0 else { return 0 }
        switch call {
        case .sync, .stable: return own.next() % 8 == 0 ? EIO : 0
        default: break
        }
        return own.next() % 2 == 0 ? ENOSPC : EIO
      }
    }
    for number in 0..<Int.random(in: 10...40, using: &chance) { steps.append(step(number, disk, log, &chance)) }
    let calls = log.calls
    try #require(steps.last?.end == calls.count)
    let (checked, problem) = try cut(calls, steps, first, backing, before, images, &chance)
    try #require(problem == nil, "\(kind)")

    // In the end no error may be found.
    log.fail { _, _ in 0 }
    let isWhole = !fails
    image.finish()
    let last = FileImage(bytes: try folder.bytes("a"))
    let report = try Qcow2Check.run(MemorySource(last.bytes), try Qcow2Header(MemorySource(last.bytes)))
    #expect(report.corruptions == 0 && report.failures == 0, "\(report.findings)")
    if isWhole { #expect(report.isClean, "\(report.findings)") }
    var promise = SectorPromise(before)
    for step in steps { step.tell(&promise) }
    let broken = promise.broken(try last.content(over: backing), now: true)
    #expect(broken == nil)
    return checked
  }

  private static func backing() -> [UInt8] {
    // Shorter than the disk, with zeroes inside, and not a whole number of clusters.
    var bytes = [UInt8](repeating: 251, count: size - 70 * FileImage.sector)
    bytes.replaceSubrange(64 << 10..<96 << 10, with: repeatElement(0, count: 32 << 10))
    return bytes
  }

  private func make(_ kind: Kind, _ folder: ImageFolder) throws {
    guard let (options, first, second) = kind.qemu else {
      return try folder.make(
        "a", size: UInt64(Self.size), clusterBits: kind.clusterBits, isExtended: kind.isExtended,
        over: kind.hasBacking ? "base" : nil)
    }
    try folder.create(
      "a", "\(Self.size)", ["-o", options] + (kind.hasBacking ? ["-b", folder.place("base"), "-F", "raw"] : []))
    try folder.io("a", first)
    guard !second.isEmpty else { return }
    try folder.run(["qemu-img", "snapshot", "-c", "then", folder.place("a")])
    try folder.io("a", second)
  }

  // MARK: Steps

  private struct Step {
    var sectors = 0..<0
    var value: UInt8 = 0
    var isFlush = false
    var isDurable = false
    var result: Int32 = 0
    /// The number of calls made by its beginning, and by its end.
    var begin = 0
    var end = 0

    func tell(_ promise: inout SectorPromise) {
      promise.begin(sectors, value)
      promise.end(sectors, value, isDone: result == 0)
      if isFlush || isDurable, result == 0 { promise.flushed() }
    }
  }

  private func step(_ number: Int, _ disk: Qcow2Disk, _ log: Qcow2Log, _ chance: inout Chance) -> Step {
    let all = Self.size / FileImage.sector
    let from = Int.random(in: 0..<all, using: &chance)
    let count = min(
      all - from, Bool.random(using: &chance) ? Int.random(in: 1...12, using: &chance) : Int.random(in: 1...130, using: &chance)
    )
    var step = Step(sectors: from..<from + count, value: UInt8(number + 1), begin: log.count)
    let (offset, bytes) = (from * FileImage.sector, count * FileImage.sector)
    switch Int.random(in: 0..<12, using: &chance) {
    case 0, 1:
      step = Step(isFlush: true, begin: step.begin)
      step.result = disk.change(.flush, at: 0, count: 0)
    case 2:
      step.value = 0
      step.result = disk.change(.punchHole, at: offset, count: bytes)
    case 3:
      step.value = 0
      step.result = disk.change(.zeroRange, at: offset, count: bytes)
    case 4:
      step.isDurable = true
      step.result = disk.change(.write, at: offset, count: bytes, value: step.value, isDurable: true)
    default:
      step.result = disk.change(
        .write, at: offset, count: bytes, value: step.value, pieces: Int.random(in: 1...5, using: &chance))
    }
    step.end = log.count
    return step
  }

  // MARK: Power cuts

  /// - Returns: the number of images checked, and what was wrong with the last of them.
  private func cut(
    _ calls: [Qcow2Call], _ steps: [Step], _ first: FileImage, _ backing: [UInt8], _ before: [UInt8], _ images: Int,
    _ chance: inout Chance
  ) throws -> (checked: Int, problem: String?) {
    // A partial sync leaves the other pending writes as they were.
    let syncs = calls.indices.filter { calls[$0] == .sync || calls[$0].isStable } + [calls.count]
    let each = max(1, (images + syncs.count - 1) / syncs.count)
    var (stable, from, checked) = (first, 0, 0)
    var promise = SectorPromise(before)
    var (begun, ended) = (0, 0)
    for sync in syncs {
      // What was submitted by that moment may be there, and what was flushed by then has to be.
      while begun < steps.count, steps[begun].begin <= sync {
        while ended < begun, steps[ended].end <= sync { end(steps[ended], &promise, &ended) }
        promise.begin(steps[begun].sectors, steps[begun].value)
        begun += 1
      }
      while ended < begun, steps[ended].end <= sync { end(steps[ended], &promise, &ended) }
      for number in 0..<each {
        var image = stable
        // All pending sectors, none, then random ones.
        let percent = [100, 0, 50, 10, 90][number % 5]
        for call in calls[from..<sync] { image.apply(call) { Int.random(in: 0..<100, using: &chance) < percent } }
        checked += 1
        if let problem = try problem(of: image, backing, promise) {
          return (checked, "call \(sync) of \(calls.count), \(percent) %: \(problem)")
        }
      }
      if sync < calls.count, calls[sync].isStable { continue }
      for call in calls[from..<sync] { stable.apply(call) }
      from = sync
    }
    return (checked, nil)
  }

  private func end(_ step: Step, _ promise: inout SectorPromise, _ ended: inout Int) {
    promise.end(step.sectors, step.value, isDone: step.result == 0)
    if step.isFlush || step.isDurable, step.result == 0 { promise.flushed() }
    ended += 1
  }

  private func problem(of image: FileImage, _ backing: [UInt8], _ promise: SectorPromise) throws -> String? {
    let source = MemorySource(image.bytes)
    let report = try Qcow2Check.run(source, try Qcow2Header(source))
    guard report.corruptions == 0, report.failures == 0 else { return report.findings.first }
    return promise.broken(try image.content(over: backing))
  }

  /// The check itself works: without the syncs that no guest asked for, of everything or of metadata alone, some images are
  /// broken.
  @Test(arguments: kinds.filter { $0.qemu == nil }) func aSyncThatIsLeftOutIsFound(kind: Kind) throws {
    var chance = Chance(5)
    let folder = try ImageFolder(in: Medium.memory.folder)
    let backing = kind.hasBacking ? Self.backing() : []
    if kind.hasBacking { try Data(backing).write(to: URL(fileURLWithPath: folder.place("base"))) }
    try make(kind, folder)
    let first = FileImage(bytes: try folder.bytes("a"))
    let log = Qcow2Log()
    var steps: [Step] = []
    try folder.writing(kind.hasBacking ? "DIR/a?backing=raw:DIR/base" : "DIR/a", log) { disk in
      for number in 0..<30 { steps.append(step(number, disk, log, &chance)) }
    }
    let asked = Set(steps.filter { $0.isFlush || $0.isDurable }.map { $0.end - 1 })
    let calls = log.calls.prefix(steps.last?.end ?? 0).enumerated().map { number, call in
      // A call that does nothing takes its place.
      call.isStable || call == .sync && !asked.contains(number) ? Qcow2Call.zero(offset: 0, count: 0) : call
    }
    let before = try first.content(over: backing)
    #expect(try cut(Array(calls), steps, first, backing, before, 200, &chance).problem != nil)
  }

  /// qemu-img checks a few of them.
  @Test(
    .enabled(if: Host.hasQemuImg, "qemu-img is not installed"), arguments: kinds.filter { !$0.hasBacking || $0.qemu == nil })
  func qemuFindsLeaksAtMost(kind: Kind) throws {
    var chance = Chance(77)
    let folder = try ImageFolder(in: Medium.memory.folder)
    let backing = kind.hasBacking ? Self.backing() : []
    if kind.hasBacking { try Data(backing).write(to: URL(fileURLWithPath: folder.place("base"))) }
    try make(kind, folder)
    let first = FileImage(bytes: try folder.bytes("a"))
    let log = Qcow2Log()
    try folder.writing(kind.hasBacking ? "DIR/a?backing=raw:DIR/base" : "DIR/a", log) { disk in
      for number in 0..<20 { #expect(step(number, disk, log, &chance).result == 0) }
    }
    let calls = log.calls
    let syncs = calls.indices.filter { calls[$0] == .sync }
    for sync in syncs.shuffled(using: &chance).prefix(3) {
      var crashed = first
      let last = syncs.last { $0 < sync } ?? 0
      for call in calls[..<last] { crashed.apply(call) }
      for call in calls[last..<sync] { crashed.apply(call) { Bool.random(using: &chance) } }
      try Data(crashed.bytes).write(to: URL(fileURLWithPath: folder.place("crashed")))
      let end = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("crashed")]).wait()
      #expect(end.status == 0 || end.status == 3, "\(end.output)")
      #expect(try folder.content("crashed") == crashed.content(over: backing))
    }
    let end = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place("a")]).wait()
    #expect(end.status == 0, "\(end.output)")
  }
}
