/// `vmm-blk image convert`: converts a chain of qcow2 images to a raw disk.
internal import ArgumentParser
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VirtioBlkDevice
internal import VirtioCore

struct ImageConvertCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "convert",
    abstract: "Convert a qcow2 image, or a chain of them, to a raw image.",
    discussion: """
        vmm-blk image convert 'qcow2:top.qcow2?backing=raw:golden.raw' disk.raw

      The source is written as for --image: files that images name are opened only as far as the URI allows. The raw file \
      must not exist; zeroes become holes.
      """)

  @Argument(help: .init("The disk, as in qcow2:PATH or qcow2:PATH?backing=FORMAT:PATH.", valueName: "uri")) var source: String
  @Argument(help: .init("The raw image to create.", valueName: "path")) var target: String
  @Flag(name: [.customShort("p"), .customLong("progress")], help: "Show the progress, on a terminal.")
  var showsProgress = false
  @Flag(help: "Read even if another program holds a lock.") var noLock = false

  /// How many bytes are read at once.
  private static let step: UInt64 = 1 << 20
  /// The size of the smallest hole, in bytes.
  private static let unit = 4096

  func run() throws {
    let location: Qcow2Location
    do throws(Qcow2Failure) { location = try Qcow2Location(source) } catch { throw ImageCommandError.usage("\(error)") }
    let reader = try Qcow2Reader(location, isLocked: !noLock)
    let descriptor = unsafe clinux_open(target, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else {
      let error = Errno(rawValue: errno)
      if error == .fileExists { throw ImageCommandError.exists(path: target) }
      throw ImageCommandError.system("created", path: target, error)
    }
    defer { close(descriptor) }
    do {
      try copy(reader, to: descriptor)
    } catch {
      _ = unsafe unlink(target)
      throw error
    }
  }

  private func copy(_ reader: Qcow2Reader, to descriptor: Int32) throws {
    let size = reader.size
    guard let length = off_t(exactly: size), ftruncate(descriptor, length) == 0 else {
      throw ImageCommandError.system("resized", path: target, Errno(rawValue: errno))
    }
    var offset: UInt64 = 0
    let progress = ImageProgress(isWanted: showsProgress)
    while offset < size {
      let extent = reader.extent(at: offset, limit: size - offset)
      let count = extent.isZero ? extent.count : min(extent.count, Self.step)
      if !extent.isZero {
        let bytes: [UInt8]
        do { bytes = try reader.read(at: offset, count: Int(count)) } catch {
          throw ImageCommandError.system("read at \(offset)", path: source, error)
        }
        try write(bytes, descriptor, at: offset)
      }
      offset += count
      progress.show(offset, of: size)
    }
    guard fsync(descriptor) == 0 else { throw ImageCommandError.system("written", path: target, Errno(rawValue: errno)) }
  }

  /// Writes the units that are not all zeroes, adjacent ones together.
  private func write(_ bytes: [UInt8], _ descriptor: Int32, at offset: UInt64) throws {
    func isZero(_ start: Int) -> Bool { bytes[start..<min(start + Self.unit, bytes.count)].allSatisfy { $0 == 0 } }
    var start = 0
    while start < bytes.count {
      guard !isZero(start) else {
        start += Self.unit
        continue
      }
      var end = start + Self.unit
      while end < bytes.count, !isZero(end) { end += Self.unit }
      end = min(end, bytes.count)
      do throws(Errno) {
        try ImageCreateCommand.put(Array(bytes[start..<end]), descriptor, at: offset + UInt64(start))
      } catch { throw ImageCommandError.system("written", path: target, error) }
      start = end
    }
  }
}
