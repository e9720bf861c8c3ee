/// The crafted memory files in Images/: drawn, processed once by the real device, and compared byte for byte.
///
/// With VMM_BLK_WRITE_GOLDEN=1 in the environment the expected files are written instead of compared; read the changes
/// before you keep them.
import Foundation
import MemoryFile
import RingInspector
import TestSupport
import Testing
import VirtioBlkDevice
import VirtioCore
import VirtioRegisters

/// The folder, and its files built by its own script.
struct Images {
  static let folder = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().appending(path: "Images")

  static let names: [String] = {
    let all = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
    return all.filter { $0.hasSuffix(".recipe") }.map { String($0.dropLast(".recipe".count)) }.sorted()
  }()

  /// Memory file and disk of every recipe, built once by the folder's script and kept in memory.
  static let built: [String: (memory: Data, disk: Data)] = {
    guard let directory = try? TemporaryDirectory() else { return [:] }
    _ = try? run("python3", [folder.appending(path: "build.py").path, "--all", directory.path])
    var built: [String: (memory: Data, disk: Data)] = [:]
    for name in names {
      guard
        let memory = FileManager.default.contents(atPath: directory.file(name + ".mem")),
        let disk = FileManager.default.contents(atPath: directory.file(name + ".img"))
      else { continue }
      built[name] = (memory, disk)
    }
    return built
  }()

  /// Copies of an image's two files in the test's own directory.
  static func copy(_ name: String, to directory: TemporaryDirectory) throws -> (memory: String, disk: String) {
    let image = try #require(built[name], "build.py did not build \(name)")
    try image.memory.write(to: URL(fileURLWithPath: directory.file("guest.mem")))
    try image.disk.write(to: URL(fileURLWithPath: directory.file("disk.img")))
    return (directory.file("guest.mem"), directory.file("disk.img"))
  }

  /// Compares with a file beside the recipe.
  static func expect(_ text: String, in name: String, _ location: SourceLocation = #_sourceLocation) throws {
    let file = folder.appending(path: name)
    if ProcessInfo.processInfo.environment["VMM_BLK_WRITE_GOLDEN"] != nil {
      try Data(text.utf8).write(to: file)
    }
    let expected = try #require(
      FileManager.default.contents(atPath: file.path).map { String(decoding: $0, as: UTF8.self) },
      "there is no \(name)", sourceLocation: location)
    let differing = zip(expected.split(separator: "\n"), text.split(separator: "\n")).first { $0 != $1 }
    #expect(
      expected == text, "\(name) has '\(differing?.0 ?? "fewer lines")', now it is '\(differing?.1 ?? "fewer lines")'",
      sourceLocation: location)
  }
}

@Suite struct ImageTests {
  @Test func thereAreImages() { #expect(Images.names.count >= 20) }

  @Test("an image's drawing and result are as recorded", arguments: Images.names)
  func golden(_ name: String) throws {
    let directory = try TemporaryDirectory()
    let (memory, disk) = try Images.copy(name, to: directory)
    let diskBefore = try Data(contentsOf: URL(fileURLWithPath: disk))

    let picture = MemoryFilePicture(try MemoryFileSnapshot(path: memory))
    let drawing = picture.draw().dropFirst()
    for line in drawing { #expect(line.count <= 80) }
    try Images.expect(drawing.joined(separator: "\n") + "\n", in: name + ".drawing")

    var options = BlockDeviceOptions()
    options.queueCount = picture.snapshot.layout.maximumQueues
    options.maximumQueueSize = 256
    options.serial = "GOLDEN"
    options.engine = .sync
    let device = try BlockDevice(
      image: try ImageFile(ImageOptions(path: disk, direct: .off)), options: options)
    let outcomes = try MemoryFileDevice(file: try MemoryFile.open(path: memory), device: device).runOnce()

    let after = try MemoryFileSnapshot(path: memory)
    var lines = [
      "status \(MemoryFilePicture.statusNames(after.registers.status))", "interrupts \(after.interruptStatus)",
    ]
    for outcome in outcomes {
      lines.append("queue \(outcome.queue): \(outcome.used) of \(outcome.available) used")
      if let failure = outcome.failure { lines.append("queue \(outcome.queue): \(failure)") }
    }
    lines.append("memory")
    let size = Int(after.layout.memorySize)
    lines += hexRows(try #require(after.memory.bytes(at: after.layout.memoryBase, count: size))) { _, row in
      row.contains { $0 != 0 }
    }
    lines.append("disk, where it changed")
    let diskAfter = [UInt8](try Data(contentsOf: URL(fileURLWithPath: disk)))
    #expect(diskAfter.count == diskBefore.count)
    lines += hexRows(diskAfter) { at, row in !row.elementsEqual(diskBefore[at..<at + row.count]) }
    try Images.expect(lines.joined(separator: "\n") + "\n", in: name + ".expected")
  }

  @Test("a second pass finds nothing to do and changes nothing", arguments: ["read-write", "resume"])
  func secondPass(_ name: String) throws {
    let directory = try TemporaryDirectory()
    let (memory, disk) = try Images.copy(name, to: directory)
    var passes: [[OnceOutcome]] = []
    var contents: [[UInt8]] = []
    for _ in 0..<2 {
      let device = try BlockDevice(image: try ImageFile(ImageOptions(path: disk, direct: .off, isLocked: false)))
      passes.append(try MemoryFileDevice(file: try MemoryFile.open(path: memory), device: device).runOnce())
      let snapshot = try MemoryFileSnapshot(path: memory)
      contents.append(try #require(snapshot.memory.bytes(at: snapshot.layout.memoryBase, count: 65536)))
    }
    #expect(passes[0].map(\.used) != [0])
    #expect(passes[1].map(\.available) == [0])
    #expect(contents[0] == contents[1])
  }
}

/// The rows of 16 bytes that `isShown` selects; runs of equal rows are folded.
private func hexRows(_ bytes: [UInt8], where isShown: (Int, ArraySlice<UInt8>) -> Bool) -> [String] {
  var rows: [String] = []
  var last: (end: Int, text: String)? = nil
  for at in stride(from: 0, to: bytes.count, by: 16) {
    let row = bytes[at..<min(at + 16, bytes.count)]
    guard isShown(at, row) else { continue }
    let text = row.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined(separator: " ")
    if let previous = last, previous.end == at, previous.text == text {
      if rows.last != "*" { rows.append("*") }
    } else {
      let digits = String(at, radix: 16)
      rows.append(String(repeating: "0", count: max(0, 6 - digits.count)) + digits + "  " + text)
    }
    last = (at + 16, text)
  }
  if rows.last == "*", let last { rows.append("up to \(String(last.end, radix: 16))") }
  return rows
}
