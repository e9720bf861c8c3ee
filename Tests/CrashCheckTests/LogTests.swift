/// A disk's log, and what a power failure may leave of it.
import CrashCheck
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct LogTests {
  private let folder: String

  init() throws {
    folder = "/var/tmp/vmm-blk-test-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
  }

  private func file(_ name: String, _ bytes: [UInt8]) throws {
    try Data(bytes).write(to: URL(fileURLWithPath: folder + "/" + name))
  }

  private static func sector(_ byte: UInt8) -> [UInt8] { [UInt8](repeating: byte, count: 512) }

  /// One letter per sector at the image's beginning: `A` … for the write it contains, `.` for zeroes.
  private static let letters = "head -c 2048 \"$1\" | tr '\\000' . | fold -w 512 | cut -c 1 | tr -d '\\n'"

  /// Makes some requests on a disk with a log. - Returns: the report of a judge that accepts this pattern.
  private func judge(_ allowed: String) throws -> LogCheckReport {
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try file("base", [UInt8](repeating: 0, count: 1 << 20))
    try file("disk", [UInt8](repeating: 0, count: 1 << 20))
    var options = BlockDeviceOptions()
    options.engine = .threads
    options.witness = try MediumLog(path: folder + "/log") { Issue.record("the log cannot be written: \($0)") }
    let device = try BlockDevice(
      image: ImageFile(ImageOptions(path: folder + "/disk", direct: .off, format: .raw)), options: options)
    let client = try BlockClient(InProcessTransport(device: device, memory: DriverMemory(size: 1 << 20)))
    let requests: [BlockRequest] = [
      .write(sector: 0, Self.sector(65)), .write(sector: 1, Self.sector(66)), .flush, .write(sector: 1, Self.sector(67)),
      .write(sector: 2, Self.sector(68)), .writeZeroes([BlockRange(sector: 0, sectors: 1)]),
    ]
    for request in requests { #expect(try client.perform(request).status == .ok) }
    try client.session.transport.writeConfiguration(at: 32, [0])
    #expect(try client.perform(.write(sector: 3, Self.sector(69))).status == .ok)
    try client.shutDown()
    var check = LogCheckOptions(
      log: folder + "/log", base: folder + "/base", command: "case $(\(Self.letters)) in \(allowed)) ;; *) exit 1;; esac",
      seed: .random(in: 0 ... .max))
    check.images = 160
    check.folder = folder
    var run = try LogCheck(check)
    return try run.run()
  }

  /// Before the flush anything, after it A and B or what came later; the last write is durable.
  @Test func everyImageIsOneThatMayBe() throws {
    let report = try judge("[.A][.B]..|[.A][BC][.D][.E]")
    #expect(report.violatedImages == 0, "\(report.violations)")
    #expect(report.images == 160 && report.flushes == 1 && report.entries == 7)
  }

  /// Each of these images occurs, so a judge that does not accept it reports it.
  @Test(arguments: ["[!A]*", "?B*|?.*", "??[!D]?", "[!.]*"]) func everyImageThatMayBeComes(allowed: String) throws {
    #expect(try judge(allowed).violatedImages > 0)
  }

  @Test(arguments: [
    [], [UInt8](repeating: 1, count: 4096), Array("not a log".utf8),
    // Version 1 with 2^40 entries, and one whose entry goes beyond the disk.
    words([magic, 1, 1 << 40, 512]), words([magic, 1, 1, 512]) + words([1 << 60, 1, 0, 0]),
    words([magic, 1, 1, 512]) + words([0, 8, 0, 0]), words([magic, 1, 1, 77]), words([magic, 2, 0, 512]),
  ])
  func otherFilesAreNoLog(bytes: [UInt8]) throws {
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try file("base", [UInt8](repeating: 0, count: 4096))
    try file("log", bytes)
    #expect(throws: CrashCheckError.self) {
      try LogCheck(LogCheckOptions(log: folder + "/log", base: folder + "/base", command: "true", seed: 1))
    }
  }

  private static let magic: UInt64 = 0x6a_7366_7768_7372

  /// A sector that begins with these words.
  private static func words(_ words: [UInt64]) -> [UInt8] {
    let bytes = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) } }
    return bytes + [UInt8](repeating: 0, count: 512 - bytes.count)
  }
}
