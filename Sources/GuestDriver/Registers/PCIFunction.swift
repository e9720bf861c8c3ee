/// A PCI function as firmware and a kernel's PCI core treat it: found, given addresses, enabled, its capabilities walked.
internal import VirtioCore
internal import VirtioRegisters

/// One function behind a mailbox. BARs are accessed by their numbers; they are given addresses all the same, because an enabled
/// function has some.
final class PCIFunction {
  /// A virtio structure (virtio 4.1.4).
  struct Structure {
    var bar: UInt8
    var offset: UInt32
    var length: UInt32
    /// Where the capability itself is.
    var capability: UInt32
  }

  private let access: RegisterAccess
  /// The number of MSI-X vectors; 0 if there is no MSI-X, or it is not enabled.
  private(set) var vectors = 0
  private var msix: UInt32 = 0
  private(set) var deviceID: UInt16 = 0
  /// The first of each type that the driver knows, as virtio 4.1.4.1 requires.
  private(set) var structures: [UInt8: Structure] = [:]

  init(_ access: RegisterAccess) { self.access = access }

  func read(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int) throws(DriverError) -> UInt64 {
    try access.read(RegisterModel.offset(space, offset), width)
  }

  func write(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int, _ value: UInt64) throws(DriverError) {
    try access.write(RegisterModel.offset(space, offset), width, value)
  }

  private func config(_ offset: UInt32, _ width: Int) throws(DriverError) -> UInt64 {
    try read(.configuration, offset, width)
  }

  /// Finds the function and its parts, and enables it: BARs, bus mastering, MSI-X.
  func enable() throws(DriverError) {
    let vendor = try config(0x00, 2)
    deviceID = UInt16(truncatingIfNeeded: try config(0x02, 2))
    guard vendor == 0x1af4, (0x1000...0x107f).contains(deviceID) else {
      throw .refused(
        "the memory file's PCI function is not virtio's: vendor 0x\(String(vendor, radix: 16)), "
          + "device 0x\(String(deviceID, radix: 16))")
    }
    try placeBars()
    try write(.configuration, 0x04, 2, 7)
    guard try config(0x06, 2) & 0x10 != 0 else { return }
    var at = UInt32(try config(0x34, 1)) & ~3
    // Bounded, in case the list loops.
    for _ in 0..<48 where at >= 0x40 {
      switch try config(at, 1) {
      case 0x09: try take(at)
      case 0x11: try openVectors(at)
      default: break
      }
      at = UInt32(try config(at + 1, 1)) & ~3
    }
  }

  /// Sizes each BAR and gives it an address that fits.
  private func placeBars() throws(DriverError) {
    var (nextPort, nextMemory): (UInt64, UInt64) = (0xc000, 0xe000_0000)
    var bar: UInt32 = 0
    while bar < 6 {
      let offset = 0x10 + bar * 4
      let kind = try config(offset, 4)
      try write(.configuration, offset, 4, 0xffff_ffff)
      let mask = try config(offset, 4)
      let isPort = kind & 1 != 0
      let bits = mask & (isPort ? ~3 : ~15)
      bar += kind & 7 == 4 ? 2 : 1
      guard bits != 0 else { continue }
      let size = 0x1_0000_0000 - bits
      var address = isPort ? nextPort : nextMemory
      address = (address + size - 1) / size * size
      try write(.configuration, offset, 4, address)
      if kind & 7 == 4 { try write(.configuration, offset + 4, 4, 0) }
      if isPort { nextPort = address + size } else { nextMemory = address + size }
    }
  }

  private func take(_ at: UInt32) throws(DriverError) {
    let (length, type, bar) = (try config(at + 2, 1), try config(at + 3, 1), try config(at + 4, 1))
    // 4.1.4.1: reserved types and BARs are skipped.
    guard length >= 16, (1...5).contains(type), bar <= 5, structures[UInt8(type)] == nil else { return }
    structures[UInt8(type)] = Structure(
      bar: UInt8(bar), offset: UInt32(try config(at + 8, 4)), length: UInt32(try config(at + 12, 4)), capability: at)
  }

  /// Gives every vector its own message, unmasks it, and enables MSI-X.
  private func openVectors(_ at: UInt32) throws(DriverError) {
    let count = Int(try config(at + 2, 2) & 0x7ff) + 1
    let table = try config(at + 4, 4)
    let (bar, offset) = (Int(table & 7), UInt32(table & ~7))
    for vector in 0..<count {
      let entry = offset + UInt32(vector) * 16
      try write(.bar(bar), entry, 4, 0xfee0_0000)
      try write(.bar(bar), entry + 4, 4, 0)
      try write(.bar(bar), entry + 8, 4, UInt64(0x20 + vector))
      try write(.bar(bar), entry + 12, 4, 0)
    }
    try write(.configuration, at + 2, 2, 0x8000)
    (msix, vectors) = (at, count)
  }

  /// Falls back to INTx.
  func closeVectors() throws(DriverError) {
    guard vectors > 0 else { return }
    try write(.configuration, msix + 2, 2, 0)
    vectors = 0
  }

  /// The structure of a type. - Throws: `refused` if it is missing.
  func structure(_ type: UInt8, _ what: String, length: UInt32) throws(DriverError) -> Structure {
    guard let found = structures[type], found.length >= length else {
      throw .refused("the PCI function has no \(what) of \(length) bytes")
    }
    return found
  }
}
