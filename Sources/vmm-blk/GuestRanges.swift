/// The verbs of `vmm-blk guest` without data: flush, discard, zero, id.
internal import ArgumentParser
internal import GuestDriver
internal import OperatorWords

struct GuestFlush: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "flush", abstract: "Make everything written so far last.", usage: GuestTarget.usage("flush"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  func run() throws { try withDisk { try $0.flush() } }
}

struct GuestDiscard: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "discard", abstract: "Tell the disk that a range is not needed any more.",
    usage: GuestTarget.usage("discard <offset> <length>"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "Where to begin, a whole number of blocks.") var offset: ByteCount
  @Argument(help: "How many bytes, a whole number of blocks.") var length: ByteCount

  func run() throws { try withDisk { try $0.discard(at: offset.bytes, count: length.bytes) } }
}

struct GuestZero: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "zero", abstract: "Make a range of the disk read as zeroes.",
    usage: GuestTarget.usage("zero <offset> <length> [--unmap]"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "Where to begin, a whole number of blocks.") var offset: ByteCount
  @Argument(help: "How many bytes, a whole number of blocks.") var length: ByteCount
  @Flag(help: "Let the disk give the space back.") var unmap = false

  func run() throws {
    try withDisk { try $0.writeZeroes(at: offset.bytes, count: length.bytes, unmap: unmap) }
  }
}

struct GuestID: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "id", abstract: "Show the disk's serial number.", usage: GuestTarget.usage("id"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  func run() throws { try withDisk { print(String(decoding: try $0.identify(), as: UTF8.self)) } }
}
