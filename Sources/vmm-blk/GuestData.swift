/// The verbs of `vmm-blk guest` that move data: read, write, copy-in, copy-out.
internal import ArgumentParser
internal import Foundation
internal import GuestDriver
internal import OperatorWords

struct GuestRead: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "read", abstract: "Show bytes of the disk as a hexdump.", usage: GuestTarget.usage("read <offset> [<length>]"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "Where to begin.") var offset: ByteCount
  @Argument(help: "How many bytes.") var length = ByteCount(512)

  func run() throws {
    try withDisk { client in
      var dump = Hexdump()
      try client.read(at: offset.bytes, count: length.bytes) { offset, bytes in dump.print(bytes, at: offset) }
      dump.finish()
    }
  }
}

struct GuestWrite: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "write", abstract: "Write a few bytes to the disk.",
    usage: GuestTarget.usage("write <offset> --text|--hex|--fill …"),
    discussion: "What lies around them in the same blocks is read first and written back. Nothing is flushed: see 'flush'.")

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "Where to begin.") var offset: ByteCount
  @OptionGroup var bytes: BytesToWrite
  @Option(help: .init("The largest request.", valueName: "bytes")) var largest = ByteCount(256 << 10)

  func validate() throws {
    guard (512...(4 << 20)).contains(largest.bytes) else {
      throw ValidationError("--largest \(largest.bytes) is not from 512 to 4M.")
    }
  }

  func run() throws {
    try withDisk { client in
      client.largest = Int(largest.bytes)
      try write(client, bytes.source)
    }
  }

  /// Writes whole blocks; a partial block at either end is completed with its present contents.
  private func write(_ client: BlockClient, _ source: BytesToWrite.Source) throws {
    let block = UInt64(client.config.logicalBlock)
    let (end, overflow) = offset.bytes.addingReportingOverflow(source.count)
    guard !overflow, end <= client.capacity else {
      throw DriverError.badRequest("\(source.count) bytes at \(offset.bytes) go past the disk's end at \(client.capacity)")
    }
    guard source.count > 0 else { return }
    let first = offset.bytes / block * block
    let last = (end + block - 1) / block * block
    let head = try client.read(at: first, count: Int(offset.bytes - first))
    let tail = try client.read(at: end, count: Int(last - end))
    try client.write(at: first, count: last - first) { start, count throws(DriverError) in
      let stop = start + UInt64(count)
      let from = max(start, offset.bytes)
      let to = min(stop, end)
      return (start == first ? head : []) + source.part(from: from - offset.bytes, count: Int(to - from))
        + (stop == last ? tail : [])
    }
  }
}

struct GuestCopyIn: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "copy-in", abstract: "Copy a file to the disk, and flush.",
    usage: GuestTarget.usage("copy-in <file> [--offset <bytes>]"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "The file; it is padded with zeroes to a whole block.") var file: String
  @Option(help: .init("Where on the disk to begin.", valueName: "bytes")) var offset = ByteCount(0)

  func run() throws {
    let handle = try LocalFile(readingFrom: file)
    try withDisk { client in
      let block = UInt64(client.config.logicalBlock)
      let size = (try handle.size + block - 1) / block * block
      var progress = ProgressLine("copied", of: size)
      try client.write(at: offset.bytes, count: size) { _, count throws(DriverError) in
        let bytes = try handle.read(count)
        return bytes + Array(repeating: 0, count: count - bytes.count)
      } progress: { bytes in
        progress.show(bytes)
      }
      if client.canFlush { try client.flush() }
      progress.finish()
    }
  }
}

struct GuestCopyOut: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "copy-out", abstract: "Copy the disk or a part of it to a file; zeroes become holes.",
    usage: GuestTarget.usage("copy-out <file> [<options>]"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "The file to create.") var file: String
  @Option(help: .init("Where on the disk to begin.", valueName: "bytes")) var offset = ByteCount(0)
  @Option(help: .init("How many bytes; by default up to the end of the disk.", valueName: "bytes")) var length: ByteCount?

  func run() throws {
    try withDisk { client in
      guard offset.bytes <= client.capacity else {
        throw DriverError.badRequest("the offset \(offset.bytes) is past the disk's end at \(client.capacity)")
      }
      let count = length?.bytes ?? client.capacity - offset.bytes
      let handle = try LocalFile(writingTo: file)
      var progress = ProgressLine("copied", of: count)
      var done: UInt64 = 0
      try client.read(at: offset.bytes, count: count) { _, bytes throws(DriverError) in
        try handle.write(bytes, at: done)
        done += UInt64(bytes.count)
        progress.show(done)
      }
      try handle.finish(size: done)
      progress.finish()
    }
  }
}

/// Bytes as hexadecimal digits, optionally separated by spaces or colons.
struct HexBytes: ExpressibleByArgument {
  let bytes: [UInt8]

  init?(argument: String) {
    let digits = argument.filter { $0 != " " && $0 != ":" }
    guard digits.count % 2 == 0, digits.allSatisfy(\.isHexDigit) else { return nil }
    var bytes: [UInt8] = []
    var rest = Substring(digits)
    while !rest.isEmpty {
      guard let byte = UInt8(rest.prefix(2), radix: 16) else { return nil }
      bytes.append(byte)
      rest = rest.dropFirst(2)
    }
    self.bytes = bytes
  }
}
