/// A folder for one test, with images in it, removed when the test is over.
import CLinux
import Foundation
import Testing
import VirtioBlkDevice
import VirtioCore

final class Scratch {
  let path: String

  /// - Parameter parent: a folder on the file system under test; `nil`: one on a disk, which /tmp often is not.
  init(in parent: String? = nil) throws {
    let folder = parent ?? "/var/tmp"
    path = folder + "/vmm-blk-test-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  /// A sparse image.
  func image(_ name: String = "disk", size: Int = 16 << 20) throws -> String {
    let file = path + "/" + name
    #expect(FileManager.default.createFile(atPath: file, contents: nil))
    try #require(unsafe truncate(file, off_t(size)) == 0)
    return file
  }

  func contents(_ file: String, at offset: Int, count: Int) throws -> [UInt8] {
    let handle = try #require(FileHandle(forReadingAtPath: file))
    try handle.seek(toOffset: UInt64(offset))
    return Array(try handle.read(upToCount: count) ?? Data())
  }

  /// Bytes that the file occupies on its file system.
  func allocated(_ file: String) throws -> Int { try Self.allocated(file) }

  static func allocated(_ file: String) throws -> Int {
    var info = stat()
    try #require(unsafe stat(file, &info) == 0)
    return Int(info.st_blocks) * 512
  }
}

/// The two kinds of file system that matter: one on a disk, one in memory.
enum Medium: String, CaseIterable, CustomTestStringConvertible {
  case disk, memory
  var folder: String? { self == .memory ? "/dev/shm" : nil }
  var testDescription: String { rawValue }
}
