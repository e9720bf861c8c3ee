/// Images for tests: made here, byte by byte, or by qemu-img.
import Foundation
import TestSupport
import Testing

@testable import Qcow2

/// A small image in which every offset is known: clusters of 64 KiB (or another size), one L2 table, one cluster of data, and
/// an empty snapshot. By cluster: 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 L2, 5 data, 6 snapshot table, 7 its L1
/// table.
struct Sample {
  var bytes: [UInt8]
  let cluster: Int

  init(extended: Bool = false, bits: UInt32 = 16, size: UInt64 = 1 << 20, backing: String? = nil) throws {
    let geometry = Qcow2Geometry(clusterBits: bits, isExtended: extended)
    let layout = try Qcow2Layout(
      size: size, geometry: geometry, backingName: backing.map { Array($0.utf8) }, backingFormat: backing.map { _ in "raw" })
    cluster = Int(geometry.clusterSize)
    try #require(layout.fileSize == UInt64(4 * cluster))
    bytes = [UInt8](repeating: 0, count: 8 * cluster)
    for piece in layout.pieces {
      bytes.replaceSubrange(Int(piece.offset)..<Int(piece.offset) + piece.bytes.count, with: piece.bytes)
    }
    for index in 4..<8 { bytes.put16(1, at: 2 * cluster + index * 2) }
    bytes.put64(Qcow2Entries.copied | UInt64(4 * cluster), at: 3 * cluster)
    bytes.put64(Qcow2Entries.copied | UInt64(5 * cluster), at: 4 * cluster)
    if extended { bytes.put64(0x0000_0000_ffff_ffff, at: 4 * cluster + 8) }
    for index in 0..<cluster { bytes[5 * cluster + index] = UInt8(truncatingIfNeeded: index &* 7 + 1) }
    bytes.put32(1, at: 60)
    bytes.put64(UInt64(6 * cluster), at: 64)
    let table = 6 * cluster
    bytes.put64(UInt64(7 * cluster), at: table)
    bytes.put32(1, at: table + 8)
    bytes.put16(1, at: table + 12)
    bytes.put16(4, at: table + 14)
    bytes.put32(16, at: table + 36)
    bytes.put64(size, at: table + 48)
    bytes.replaceSubrange(table + 56..<table + 61, with: Array("1snap".utf8))
  }

  var source: MemorySource { MemorySource(bytes) }
}

/// Runs everything that a reader and a checker do.
/// - Returns: the first fault found; `nil`: none.
func firstFault(_ source: some ImageSource) -> String? {
  do throws(Qcow2Fault) {
    let header = try Qcow2Header(source)
    let snapshots = try header.snapshots(source)
    for snapshot in snapshots { _ = try header.level1(source, of: snapshot) }
    let entries = Qcow2Entries(header)
    for table in try header.level1(source) where table != 0 {
      let bytes = try source.need(.level2, at: table, count: Int(header.clusterSize))
      for start in stride(from: 0, to: bytes.count, by: header.geometry.entryBytes) {
        _ = try entries.level2(
          bytes.word64(start), bitmap: header.geometry.isExtended ? bytes.word64(start + 8) : 0)
      }
    }
    return try Qcow2Check.run(source, header).findings.first
  } catch { return "\(error)" }
}

/// Programs of QEMU.
enum Qemu {
  static let isHere = FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-img")

  /// - Returns: how it ended, and its output on both streams.
  @discardableResult
  static func run(_ program: String, _ words: [String]) throws -> (status: Int32, output: String, errors: String) {
    try Program(words, program: URL(fileURLWithPath: "/usr/bin/" + program)).finish()
  }

  /// qemu-img, which must succeed.
  @discardableResult
  static func image(_ words: [String], _ place: SourceLocation = #_sourceLocation) throws -> String {
    let result = try run("qemu-img", words)
    #expect(result.status == 0, "qemu-img \(words): \(result.errors)", sourceLocation: place)
    return result.output
  }

  /// Commands of qemu-io on an image, which must succeed.
  static func io(_ path: String, _ commands: [String], _ place: SourceLocation = #_sourceLocation) throws {
    let result = try run("qemu-io", ["-f", "qcow2"] + commands.flatMap { ["-c", $0] } + [path])
    #expect(result.status == 0, "qemu-io \(commands): \(result.output) \(result.errors)", sourceLocation: place)
  }

  static func json(_ words: [String]) throws -> [String: Any] {
    let text = try image(words + ["--output=json"])
    return try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
  }

  /// The verdict of `qemu-img check`.
  static func check(_ path: String) throws -> (status: Int32, leaks: Int, corruptions: Int) {
    let result = try run("qemu-img", ["check", "-f", "qcow2", "--output=json", path])
    let report = try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any] ?? [:]
    return (result.status, report["leaks"] as? Int ?? 0, report["corruptions"] as? Int ?? 0)
  }
}

/// A file that is open while a test checks it.
final class OpenFile {
  let handle: FileHandle
  let source: FileSource

  init(_ path: String) throws {
    handle = try #require(FileHandle(forReadingAtPath: path))
    source = try FileSource(handle.fileDescriptor)
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
