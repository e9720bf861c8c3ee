/// qcow2 images that QEMU makes, and disks on them.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

extension Host {
  static let hasQemuImg: Bool = run("qemu-img", "--version") != nil && run("qemu-io", "--version") != nil
}

/// A folder with images in it. Names are relative to the folder.
struct ImageFolder {
  let scratch: Scratch
  var path: String { scratch.path }

  init(in parent: String? = nil) throws { scratch = try Scratch(in: parent) }

  func place(_ name: String) -> String { path + "/" + name }

  /// Runs a program of QEMU, which must succeed; `DIR` stands for the folder.
  func run(_ words: [String], _ place: SourceLocation = #_sourceLocation) throws {
    let words = words.map { $0.replacingOccurrences(of: "DIR", with: path) }
    let end = try ChildProgram(["/usr/bin/env"] + words).wait()
    guard end.status == 0 else { throw TookTooLong(description: "\(words) ended with \(end.status): \(end.output)") }
  }

  /// - Parameter more: options of `qemu-img create`, before the name.
  func create(_ name: String, _ size: String? = nil, _ more: [String] = []) throws {
    try run(["qemu-img", "create", "-q", "-f", "qcow2"] + more + [place(name)] + (size.map { [$0] } ?? []))
  }

  func overlay(_ name: String, over base: String, _ format: String, _ more: [String] = []) throws {
    try create(name, nil, ["-b", place(base), "-F", format] + more)
  }

  func io(_ name: String, _ commands: [String], format: String = "qcow2") throws {
    try run(["qemu-io", "-f", format] + commands.flatMap { ["-c", $0] } + [place(name)])
  }

  /// The disk as QEMU reads it. - Parameter snapshot: one of the image's internal snapshots.
  func content(_ name: String, snapshot: String? = nil) throws -> [UInt8] {
    let raw = "raw-" + UUID().uuidString
    try run(
      ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"] + (snapshot.map { ["-l", "snapshot.name=\($0)"] } ?? [])
        + [place(name), place(raw)])
    defer { try? FileManager.default.removeItem(atPath: place(raw)) }
    return Array(try Data(contentsOf: URL(fileURLWithPath: place(raw))))
  }

  /// Overwrites bytes of an image directly.
  func put(_ name: String, _ offset: UInt64, _ bytes: [UInt8]) throws {
    let handle = try #require(FileHandle(forUpdatingAtPath: place(name)))
    try handle.seek(toOffset: offset)
    try handle.write(contentsOf: Data(bytes))
    try handle.close()
  }

  func cut(_ name: String, to length: Int) throws { try #require(unsafe truncate(place(name), off_t(length)) == 0) }

  /// Length of a file in bytes.
  func length(_ name: String) throws -> Int {
    var info = stat()
    try #require(unsafe stat(place(name), &info) == 0)
    return Int(info.st_size)
  }

  func location(_ words: String) throws -> Qcow2Location {
    try Qcow2Location("qcow2:" + words.replacingOccurrences(of: "DIR", with: path))
  }

  /// - Parameter words: after `qcow2:`; `DIR` stands for the folder.
  func open(_ words: String, blockSize: Int = 512) throws -> ImageFile {
    let location = try location(words)
    var options = ImageOptions(path: location.path, isReadOnly: true, logicalBlockSize: blockSize)
    options.qcow2 = location
    return try ImageFile(options)
  }
}

extension Qcow2Copies {
  /// Where the data of a transfer is mapped, if it can be copied.
  func place(of operation: IOOperation) -> Qcow2Place? {
    guard case .unknown(let entry) = fetch(operation.offset) else { return nil }
    let found = unsafe find(
      operation.kind, isDurable: operation.isDurable, operation.offset, operation.length, entry: entry)
    return canCopy(found, operation.length) ? found : nil
  }
}

extension Qcow2Disk {
  /// Executes an operation as the engine does. - Returns: bytes, 0, or a negative errno.
  func serve(_ operation: IOOperation) -> Int32 {
    var copies = Qcow2Copies(self)
    guard operation.kind.isTransfer, let place = copies.place(of: operation) else { return perform(operation) }
    return copies.perform(operation, place)
  }

  /// Reads as the engine does, into scattered memory.
  func bytes(at offset: Int, count: Int, pieces: Int = 1) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xa5, count: count)
    let result: Int32 = unsafe bytes.withUnsafeMutableBytes { buffer in
      let size = max(1, count / pieces)
      var segments: [MemorySegment] = []
      for start in stride(from: 0, to: count, by: size) {
        unsafe segments.append(MemorySegment(base: buffer.baseAddress! + start, count: min(size, count - start)))
      }
      return unsafe segments.withUnsafeMutableBufferPointer { segments in
        var operation = unsafe IOOperation(kind: .read)
        operation.offset = UInt64(offset)
        operation.length = UInt64(count)
        unsafe operation.segments = segments.baseAddress
        operation.segmentCount = segments.count
        return serve(operation)
      }
    }
    guard result == Int32(count) else { throw TookTooLong(description: "a read of \(count) at \(offset) returned \(result)") }
    return bytes
  }
}
