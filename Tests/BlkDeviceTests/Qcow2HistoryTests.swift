/// The same random history through QEMU and through this program, on images of all kinds: equal disks, and two consistent
/// images.
///
/// Both programs change one copy of an image each in the same way, and then swap copies. `VMM_BLK_HISTORIES` says
/// the number of histories, and `VMM_BLK_HISTORY` the number of the first one: a number always gives the same history.
/// `Scripts/qcow2-histories.py --write` does this with the installed programs, and kills servers.
import Foundation
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2HistoryTests {
  private static func number(_ name: String, _ usual: Int) -> Int {
    ProcessInfo.processInfo.environment[name].flatMap(Int.init) ?? usual
  }

  private static let first = number("VMM_BLK_HISTORY", 1)
  private static let histories = first..<first + number("VMM_BLK_HISTORIES", 16)

  @Test func bothProgramsMakeTheSameDiskOfIt() throws {
    for number in Self.histories {
      var history = try Qcow2History(number)
      do { try history.run() } catch { Issue.record("history \(number): \(error)") }
    }
  }
}

/// One history. If it fails, its images are gone: its number makes it again.
private struct Qcow2History {
  private var chance: Chance
  private let folder: ImageFolder
  /// Size of the disk in bytes, and of its clusters.
  private var size: Int
  private let cluster: Int
  /// Options of `qemu-img create`.
  private let options: String
  /// Format of the backing file.
  private let under: String?
  private var hasSnapshot = false

  private static let sizes = [1 << 20, 1_000_448, 3 << 20, 2 << 20 | 512]
  private static let turns = 2

  init(_ number: Int) throws {
    var chance = Chance(UInt64(number))
    folder = try ImageFolder(in: Medium.memory.folder)
    size = Self.sizes.randomElement(using: &chance) ?? 0
    func one<Value>(of values: Value...) -> Value { values[Int(chance.next() % UInt64(values.count))] }
    let isOld = chance.next() % 7 == 0
    let isExtended = !isOld && chance.next() % 5 < 2
    cluster = 1 << (isExtended ? Int.random(in: 14...18, using: &chance) : Int.random(in: 9...18, using: &chance))
    let words = [
      "extended_l2=\(isExtended ? "on" : "off")", "compression_type=\(one(of: "zlib", "zstd"))",
      "lazy_refcounts=\(one(of: "on", "off"))", "refcount_bits=\(one(of: 8, 16, 16, 32, 64))",
    ]
    options = (["cluster_size=\(cluster)"] + (isOld ? ["compat=0.10"] : words)).joined(separator: ",")
    under = chance.next() % 5 < 3 ? one(of: "raw", "qcow2") : nil
    self.chance = chance
  }

  private var isOld: Bool { options.contains("compat") }

  mutating func run() throws {
    try make()
    let then = hasSnapshot ? try disk("a", snapshot: true) : []
    for turn in 0..<Self.turns {
      if !hasSnapshot, !isOld, chance.next() % 5 == 0 {
        // QEMU reads an old snapshot of such an image in the new size, and cannot resize every version 2 image.
        size += [512, 65536, 1 << 20].randomElement(using: &chance) ?? 0
        for name in ["a", "b"] { try folder.run(["qemu-img", "resize", "-q", "-f", "qcow2", folder.place(name), "\(size)"]) }
      }
      let changes = (0..<Int.random(in: 1...12, using: &chance)).map { _ in change() }
      let (theirs, ours) = turn % 2 == 0 ? ("a", "b") : ("b", "a")
      try folder.io(theirs, changes.flatMap(\.commands))
      try folder.writing(words(ours)) { disk in for change in changes { try change.apply(to: disk) } }
      let disks = try ["a", "b"].map { try disk($0, snapshot: false) }
      if let place = firstDifference(disks[0], disks[1]) {
        throw TookTooLong(description: "turn \(turn): they differ: \(place)")
      }
      for name in ["a", "b"] {
        try folder.run(["qemu-img", "check", "-f", "qcow2", folder.place(name)])
        if hasSnapshot, let place = firstDifference(try disk(name, snapshot: true), then) {
          throw TookTooLong(description: "turn \(turn): the snapshot of \(name) has changed: \(place)")
        }
      }
    }
  }

  // MARK: Images

  private mutating func make() throws {
    var more = ["-o", options]
    if let under {
      let length = Self.sizes.randomElement(using: &chance) ?? 0
      try folder.run(["qemu-img", "create", "-q", "-f", under, folder.place("base"), "\(length)"])
      try folder.io("base", Qcow2ReadTests.history(12, size: length, compressed: nil, &chance), format: under)
      more += ["-b", folder.place("base"), "-F", under]
    }
    try folder.create("a", "\(size)", more)
    try folder.io("a", Qcow2ReadTests.history(16, size: size, compressed: size >= cluster ? cluster : nil, &chance))
    if chance.next() % 5 < 2 {
      hasSnapshot = true
      try folder.run(["qemu-img", "snapshot", "-c", "then", folder.place("a")])
      try folder.io("a", Qcow2ReadTests.history(8, size: size, compressed: nil, &chance))
    }
    try FileManager.default.copyItem(atPath: folder.place("a"), toPath: folder.place("b"))
  }

  /// What follows `qcow2:`.
  private func words(_ name: String) -> String { "DIR/\(name)" + (under.map { "?backing=\($0):DIR/base" } ?? "") }

  /// A disk as both programs read it. - Throws: if they read different bytes.
  private func disk(_ name: String, snapshot: Bool) throws -> [UInt8] {
    let theirs = try folder.content(name, snapshot: snapshot ? "then" : nil)
    let image = try folder.open(words(name) + (snapshot ? (under == nil ? "?" : "&") + "snapshot=then" : ""))
    let disk = try #require(image.chain)
    let ours = try disk.bytes(at: 0, count: Int(disk.size))
    if let place = firstDifference(theirs, ours) { throw TookTooLong(description: "\(name) is read differently: \(place)") }
    return ours
  }

  // MARK: Changes

  private struct Change {
    var kind: IOOperation.Kind
    var range: Range<Int>
    var value: UInt8 = 0
    var pieces = 1

    /// Commands of qemu-io. The programs differ in what they leave of discarded data, so zeroes follow.
    var commands: [String] {
      let place = "\(range.lowerBound) \(range.count)"
      return switch kind {
      case .write: ["write -P \(value) \(place)"]
      case .punchHole: ["write -z -u \(place)"]
      case .zeroRange: ["write -z \(place)"]
      case .blockDiscard: ["discard \(place)", "write -z \(place)"]
      default: ["flush"]
      }
    }

    func apply(to disk: Qcow2Disk) throws {
      let kinds: [IOOperation.Kind] = kind == .blockDiscard ? [.blockDiscard, .zeroRange] : [kind]
      for kind in kinds {
        let result = disk.change(kind, at: range.lowerBound, count: range.count, value: value, pieces: pieces)
        guard result == 0 else { throw TookTooLong(description: "\(kind) at \(range) returned \(result)") }
      }
    }
  }

  private mutating func change() -> Change {
    let from = Int.random(in: 0..<size / 512, using: &chance) * 512
    let range = from..<min(size, from + Int.random(in: 1...300, using: &chance) * 512)
    switch Int.random(in: 0..<10, using: &chance) {
    case 0: return Change(kind: .punchHole, range: range)
    case 1: return Change(kind: .zeroRange, range: range)
    case 2: return Change(kind: .flush, range: 0..<0)
    case 3 where size >= 2 * cluster:
      let start = Int.random(in: 0..<size / cluster, using: &chance) * cluster
      return Change(kind: .blockDiscard, range: start..<start + cluster)
    default:
      return Change(
        kind: .write, range: range, value: .random(in: 1...255, using: &chance), pieces: .random(in: 1...70, using: &chance))
    }
  }
}
