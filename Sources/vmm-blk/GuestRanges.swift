/// The verbs of `vmm-blk guest` without data: flush, discard, zero, erase, lifetime, id.
internal import ArgumentParser
internal import GuestDriver
internal import OperatorWords

struct GuestFlush: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "flush", abstract: "Make everything written so far durable.", usage: GuestTarget.usage("flush"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  func run() throws { try withDisk { try $0.flush() } }
}

struct GuestDiscard: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "discard", abstract: "Tell the disk that a range is no longer needed.",
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
  @Flag(help: "Allow the disk to deallocate the range.") var unmap = false

  func run() throws {
    try withDisk { try $0.writeZeroes(at: offset.bytes, count: length.bytes, unmap: unmap) }
  }
}

struct GuestErase: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "erase", abstract: "Destroy the contents of a range (SECURE_ERASE).",
    usage: GuestTarget.usage("erase <offset> <length>"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "Where to begin, a multiple of secure_erase_sector_alignment (see 'guest info').")
  var offset: ByteCount
  @Argument(help: "How many bytes, a multiple of the same.") var length: ByteCount

  func run() throws { try withDisk { try $0.secureErase(at: offset.bytes, count: length.bytes) } }
}

struct GuestLifetime: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "lifetime", abstract: "Show how much of its lifetime the underlying device has used.",
    usage: GuestTarget.usage("lifetime"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  func run() throws {
    try withDisk { print(Self.text(try $0.lifetime())) }
  }

  /// - Parameter values: the three values of the answer.
  private static func text(_ values: [UInt16]) -> String {
    let reserve = ["not reported", "less than 80 % of the reserve blocks used", "80 % used", "90 % used"]
    func cells(_ value: UInt16) -> String {
      value == 0 ? "not reported" : value <= 10 ? "up to \(value * 10) % used" : "beyond its estimated lifetime"
    }
    return """
      reserve blocks: \(Int(values[0]) < reserve.count ? reserve[Int(values[0])] : "reserved value \(values[0])")
      cells of one bit (type A): \(cells(values[1]))
      cells of several bits (type B): \(cells(values[2]))
      """
  }
}

struct GuestID: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "id", abstract: "Show the disk's serial number.", usage: GuestTarget.usage("id"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  func run() throws { try withDisk { print(String(decoding: try $0.identify(), as: UTF8.self)) } }
}
