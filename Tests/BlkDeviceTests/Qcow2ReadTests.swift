/// qcow2 images read as QEMU reads them.
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2ReadTests {
  /// Kinds of images, as options of `qemu-img create`.
  static let kinds = [
    "", "compat=0.10", "extended_l2=on", "extended_l2=on,cluster_size=16k", "cluster_size=512", "cluster_size=2M",
    "compression_type=zstd", "compression_type=zstd,extended_l2=on", "refcount_bits=1", "lazy_refcounts=on",
    "preallocation=metadata",
  ]

  /// Commands of qemu-io that write, zero and discard at random.
  ///
  /// - Parameter compressed: the cluster size in bytes, if some clusters of an empty image are to be compressed first; `nil`:
  ///   none.
  static func history(_ count: Int, size: Int, compressed: Int?, _ chance: inout Chance) -> [String] {
    var commands: [String] = []
    if let compressed {
      let clusters = Array(0..<size / compressed).shuffled(using: &chance).prefix(count / 4)
      commands = clusters.map { "write -c -P \(200 + $0 % 50) \($0 * compressed) \(compressed)" }
    }
    for step in commands.count..<count {
      let offset = Int.random(in: 0..<size / 512, using: &chance) * 512
      let length = min(size - offset, Int.random(in: 1...256, using: &chance) * 512)
      let place = "\(offset) \(length)"
      switch Int.random(in: 0..<10, using: &chance) {
      case 0: commands.append("discard \(place)")
      case 1: commands.append("write -z \(place)")
      case 2: commands.append("write -z -u \(place)")
      default: commands.append("write -P \(step % 199 + 1) \(place)")
      }
    }
    return commands
  }

  @Test(arguments: kinds) func anyHistoryReadsAsQEMUReadsIt(kind: String) throws {
    var chance = Chance(UInt64(kind.utf8.reduce(7) { $0 &* 31 &+ UInt64($1) }))
    let folder = try ImageFolder()
    let size = 4 << 20
    let words = kind.isEmpty ? [] : ["-o", kind]
    let cluster = kind.contains("512") ? 512 : kind.contains("16k") ? 16 << 10 : kind.contains("2M") ? 2 << 20 : 64 << 10
    // QEMU does not compress clusters that are already allocated.
    let compressed = kind.contains("preallocation") ? nil : cluster
    try folder.create("a", "\(size)", words)
    try folder.io("a", Self.history(40, size: size, compressed: compressed, &chance))
    try expectSame(folder, "DIR/a", as: try folder.content("a"), &chance)
    guard kind != "refcount_bits=1" else { return }
    try folder.run(["qemu-img", "snapshot", "-c", "then", folder.place("a")])
    let then = try folder.content("a")
    try folder.io("a", Self.history(20, size: size, compressed: nil, &chance))
    try expectSame(folder, "DIR/a", as: try folder.content("a"), &chance)
    try expectSame(folder, "DIR/a?snapshot=then", as: then, &chance)
  }

  @Test(arguments: ["", "extended_l2=on", "cluster_size=512", "compression_type=zstd"], [false, true])
  func anyChainReadsAsQEMUReadsIt(kind: String, isRaw: Bool) throws {
    var chance = Chance(UInt64(kind.utf8.count * 2 + (isRaw ? 1 : 0)))
    let folder = try ImageFolder()
    let words = kind.isEmpty ? [] : ["-o", kind]
    let cluster = kind.contains("512") ? 512 : 64 << 10
    func history(_ size: Int) -> [String] { Self.history(20, size: size, compressed: cluster, &chance) }
    // Each is larger than the one under it, and only the top one ends at a cluster boundary.
    let sizes = [1_000_448, 2 << 20, 3_000_320, 4 << 20]
    if isRaw {
      try folder.run(["qemu-img", "create", "-q", "-f", "raw", folder.place("0"), "\(sizes[0])"])
      try folder.io("0", ["write -P 9 0 900k", "write -P 8 999936 512"], format: "raw")
    } else {
      try folder.create("0", "\(sizes[0])", words)
      try folder.io("0", history(sizes[0] - cluster))
    }
    for level in 1...3 {
      try folder.create(
        "\(level)", "\(sizes[level])",
        words + ["-b", folder.place("\(level - 1)"), "-F", isRaw && level == 1 ? "raw" : "qcow2"])
      try folder.io("\(level)", history(sizes[level]))
    }
    let content = try folder.content("3")
    let base = isRaw ? "raw" : "qcow2"
    try expectSame(folder, "DIR/3?backing=qcow2:DIR/2&backing=qcow2:DIR/1&backing=\(base):DIR/0", as: content, &chance)
    try expectSame(folder, "DIR/3?backing-folder=DIR", as: content, &chance)
  }

  @Test(arguments: [false, true]) func anExternalDataFileIsRead(isRaw: Bool) throws {
    var chance = Chance(isRaw ? 5 : 6)
    let folder = try ImageFolder()
    try folder.create("a", "4M", ["-o", "data_file=DIR/data,data_file_raw=\(isRaw ? "on" : "off")"])
    try folder.io("a", Self.history(30, size: 4 << 20, compressed: nil, &chance))
    let content = try folder.content("a")
    try expectSame(folder, "DIR/a?data-file=DIR/data", as: content, &chance)
    try expectSame(folder, "DIR/a?backing-folder=DIR", as: content, &chance)
    #expect { try folder.open("DIR/a") } throws: { "\($0)".contains("has its data in another file") }
    #expect { try folder.open("DIR/a?data-file=DIR/a") } throws: { "\($0)".contains("is another file") }
  }

  /// Through the synthetic guest, in pieces of all sizes, with each engine.
  @Test(arguments: [EngineKind.auto, .cached, .threads, .sync], Medium.allCases)
  func aGuestReadsWhatIsThere(engine: EngineKind, medium: Medium) throws {
    var chance = Chance(11)
    let folder = try ImageFolder(in: medium.folder)
    let size = 4 << 20
    try folder.run(["qemu-img", "create", "-q", "-f", "raw", folder.place("base"), "\(size)"])
    try folder.io("base", ["write -P 3 0 3M"], format: "raw")
    try folder.overlay("a", over: "base", "raw", ["-o", "extended_l2=on"])
    try folder.io("a", Self.history(40, size: size, compressed: 64 << 10, &chance))
    let content = try folder.content("a")
    var options = RigOptions()
    (options.qcow2, options.engine, options.isReadOnly) = (try folder.location("DIR/a?backing=raw:DIR/base"), engine, true)
    options.device.queueCount = 2
    let rig = try Rig(options)
    for step in 0..<200 {
      let bytes = Int.random(in: 1...128, using: &chance) * 512
      let sector = UInt64.random(in: 0...UInt64((size - bytes) / 512), using: &chance)
      let outcome = try rig.perform(.read(sector: sector, bytes: bytes), queue: step % 2)
      try #require(outcome.status == .ok)
      let start = Int(sector) * 512
      try #require(firstDifference(outcome.answer, Array(content[start..<start + bytes])) == nil, "\(bytes) at \(sector)")
    }
    try rig.expect(.write(sector: 0, pattern(512)), .ioError)
    try rig.expect(.flush, .ok)
    // The write, and no other request.
    #expect(rig.device.counters.failures == 1)
  }

  /// A read of damaged metadata or data fails that request, and no other.
  @Test(arguments: [EngineKind.cached, .threads, .sync]) func damageIsAnErrorWhereItIs(engine: EngineKind) throws {
    let folder = try ImageFolder()
    try folder.create("a", "4M")
    // L2 table at 0x40000, data from 0x50000 on.
    try folder.io("a", ["write -P 1 0 512k", "write -c -P 2 1M 64k"])
    let handle = try #require(FileHandle(forUpdatingAtPath: folder.place("a")))
    func put(_ place: UInt64, _ bytes: [UInt8]) throws {
      try handle.seek(toOffset: place)
      try handle.write(contentsOf: Data(bytes))
    }
    try put(0x40008, [0x80, 0, 1, 0, 0, 0, 0, 0])  // far beyond the end
    try put(0x40010, [0x80, 0, 0, 0, 0, 5, 2, 0])  // within a cluster
    try put(0x40018, [0xbf, 0, 0, 0, 0, 5, 0, 0])  // reserved bits
    let compressed = try scratchWord(folder, 0x40080) & 0x3f_ffff_ffff_ffff
    try put(compressed, [UInt8](repeating: 0xff, count: 64))
    try handle.close()
    var options = RigOptions()
    (options.qcow2, options.engine, options.isReadOnly) = (try folder.location("DIR/a"), engine, true)
    let rig = try Rig(options)
    for cluster in [1, 2, 3, 16] as [UInt64] {
      try rig.expect(.read(sector: cluster * 128, bytes: 512), .ioError, "\(cluster)")
    }
    // Across the border between valid and damaged clusters.
    try rig.expect(.read(sector: 127, bytes: 1024), .ioError)
    for cluster in [0, 4, 7] as [UInt64] {
      #expect(try rig.expect(.read(sector: cluster * 128, bytes: 65536)).answer == [UInt8](repeating: 1, count: 65536))
    }
    #expect(try rig.expect(.read(sector: 17 * 128, bytes: 512)).answer == zeroes(512))
  }

  private func scratchWord(_ folder: ImageFolder, _ place: Int) throws -> UInt64 {
    try folder.scratch.contents(folder.place("a"), at: place, count: 8).reduce(0) { $0 << 8 | UInt64($1) }
  }

  private func expectSame(
    _ folder: ImageFolder, _ words: String, as content: [UInt8], _ chance: inout Chance,
    _ place: SourceLocation = #_sourceLocation
  ) throws {
    let image = try folder.open(words)
    #expect(image.size == UInt64(content.count), sourceLocation: place)
    let disk = try #require(image.chain)
    #expect(firstDifference(try disk.bytes(at: 0, count: content.count), content) == nil, "\(words)", sourceLocation: place)
    var glances = 0
    for _ in 0..<50 {
      let start = Int.random(in: 0..<content.count, using: &chance)
      let count = Int.random(in: 1...min(200_000, content.count - start), using: &chance)
      let bytes = try disk.bytes(at: start, count: count, pieces: Int.random(in: 1...5, using: &chance))
      try #require(
        firstDifference(bytes, Array(content[start..<start + count])) == nil, "\(words) \(count) at \(start)",
        sourceLocation: place)
      let (offset, length) = (UInt64(start), UInt64(count % 5000 + 1))
      for layer in disk.layers {
        guard let isRight = layer.map.glanceIsRight(at: offset, length) else { continue }
        glances += 1
        #expect(isRight, "\(words) \(length) at \(offset)", sourceLocation: place)
      }
    }
    #expect(glances > 0, sourceLocation: place)
  }
}

extension Qcow2Map {
  /// Whether a glance says what a look says; `nil`: it says nothing.
  fileprivate func glanceIsRight(at offset: UInt64, _ length: UInt64) -> Bool? {
    let piece = lookOnce(at: offset, limit: length)
    return switch glance(at: offset, length) {
    case .unclear: nil
    case .absent: piece.kind == .absent && piece.count == length
    case .data(let place, let isOwn): piece.kind == .data(place) && piece.count == length && piece.isOwn == isOwn
    }
  }
}

/// Random numbers that depend only on the seed.
struct Chance: RandomNumberGenerator {
  private var state: UInt64
  init(_ seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ word >> 30) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ word >> 27) &* 0x94d0_49bb_1331_11eb
    return word ^ word >> 31
  }
}
