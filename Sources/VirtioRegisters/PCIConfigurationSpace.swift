/// The configuration space of a virtio-pci function (PCI Local Bus 3.0, chapter 6; virtio 4.1.2 and 4.1.4) as bytes and masks.

/// 256 bytes, each with a mask of the bits that a driver can write. Other bits keep their value: a driver finds the size of a
/// BAR by writing all ones and reading back.
struct PCIConfigurationSpace: Hashable, Sendable {
  static let size = 256
  static let command = 0x04
  static let status = 0x06
  static let barOffset = 0x10
  /// Offsets of the capabilities.
  static let common = 0x40
  static let notify = 0x50
  static let isr = 0x64
  static let device = 0x74
  static let window = 0x84
  static let msix = 0x98
  /// Fields of the access window (virtio 4.1.4.9, VIRTIO_PCI_CAP_PCI_CFG).
  static let windowBar = window + 4
  static let windowOffset = window + 8
  static let windowLength = window + 12
  static let windowData = window + 16

  /// Command register.
  static let ioSpace: UInt16 = 1
  static let memorySpace: UInt16 = 2
  static let busMaster: UInt16 = 4
  static let interruptDisable: UInt16 = 0x400
  /// Status register: there is a capability list; an interrupt is pending.
  private static let capabilityList: UInt16 = 0x10
  static let interruptStatus: UInt8 = 0x08

  private(set) var bytes = [UInt8](repeating: 0, count: size)
  private let writable: [UInt8]

  init(interface: RegisterInterface, deviceID: UInt32, layout: PCILayout) {
    var writable = [UInt8](repeating: 0, count: Self.size)
    var bytes = bytes
    func set(_ offset: Int, _ values: [UInt8]) { bytes.replaceSubrange(offset..<offset + values.count, with: values) }
    func set(_ offset: Int, _ value: UInt16) { set(offset, AccessBytes.bytes(UInt64(value), width: 2)) }
    func set(_ offset: Int, _ value: UInt32) { set(offset, AccessBytes.bytes(UInt64(value), width: 4)) }
    func allow(_ offset: Int, _ mask: UInt32, width: Int = 4) {
      writable.replaceSubrange(offset..<offset + width, with: AccessBytes.bytes(UInt64(mask), width: width))
    }
    // Identity (virtio 4.1.2.1, 4.1.2.3). Transitional devices have revision 0 and their virtio ID as subsystem.
    let isTransitional = interface.hasLegacy
    set(0x00, 0x1af4 as UInt16)
    set(0x02, isTransitional ? Self.transitionalID(deviceID) : 0x1040 &+ UInt16(truncatingIfNeeded: deviceID))
    bytes[0x08] = isTransitional ? 0 : 1
    // A disk is "other mass storage" (class 01, subclass 80); other devices have no class.
    set(0x09, deviceID == 2 ? [0x00, 0x80, 0x01] : [0x00, 0x00, 0xff])
    set(0x2c, 0x1af4 as UInt16)
    set(0x2e, isTransitional ? UInt16(truncatingIfNeeded: deviceID) : 0x1100)
    set(Self.status, Self.capabilityList)
    let spaces = (isTransitional ? Self.ioSpace : 0) | Self.memorySpace
    allow(Self.command, UInt32(spaces | Self.busMaster | Self.interruptDisable), width: 2)
    allow(0x0c, 0xff, width: 1)
    allow(0x3c, 0xff, width: 1)
    // INTA.
    bytes[0x3d] = 1

    func bar(_ index: Int, size: UInt32, kind: UInt32) {
      set(Self.barOffset + index * 4, kind)
      allow(Self.barOffset + index * 4, ~(size - 1))
    }
    if interface.hasLegacy { bar(PCILayout.legacyBar, size: PCILayout.legacySize, kind: 1) }
    bar(PCILayout.msixBar, size: layout.msixSize, kind: 0)
    if interface.hasModern {
      bar(PCILayout.virtioBar, size: layout.virtioSize, kind: 4)
      allow(Self.barOffset + (PCILayout.virtioBar + 1) * 4, .max)
    }

    /// `struct virtio_pci_cap` (virtio 4.1.4).
    func capability(
      _ at: Int, next: Int, length: UInt8 = 16, type: UInt8, offset: UInt32 = 0, size: UInt32 = 0
    ) {
      set(at, [0x09, UInt8(next), length, type, UInt8(PCILayout.virtioBar), 0, 0, 0])
      set(at + 8, offset)
      set(at + 12, size)
    }
    if interface.hasModern {
      capability(Self.common, next: Self.notify, type: 1, offset: PCILayout.commonOffset, size: PCILayout.commonSize)
      capability(
        Self.notify, next: Self.isr, length: 20, type: 2, offset: PCILayout.notifyOffset, size: layout.notifySize)
      set(Self.notify + 16, PCILayout.notifyMultiplier)
      capability(Self.isr, next: Self.device, type: 3, offset: PCILayout.isrOffset, size: 1)
      capability(Self.device, next: Self.window, type: 4, offset: PCILayout.deviceOffset, size: PCILayout.deviceSize)
      capability(Self.window, next: Self.msix, length: 20, type: 5)
      bytes[Self.windowBar] = 0
      allow(Self.windowBar, 0xff, width: 1)
      for field in [Self.windowOffset, Self.windowLength, Self.windowData] { allow(field, .max) }
    }
    bytes[0x34] = UInt8(interface.hasModern ? Self.common : Self.msix)
    // MSI-X (PCI 3.0, 6.8.2): the table's size minus one; enable and function mask can be written.
    set(Self.msix, [0x11, 0])
    set(Self.msix + 2, UInt16(layout.vectors - 1))
    allow(Self.msix + 2, 0xc000, width: 2)
    set(Self.msix + 4, UInt32(PCILayout.msixBar))
    set(Self.msix + 8, layout.pendingOffset | UInt32(PCILayout.msixBar))
    self.writable = writable
    self.bytes = bytes
  }

  /// The transitional IDs (virtio 4.1.2, table 4.1); 0x1000 … 0x103f.
  private static func transitionalID(_ deviceID: UInt32) -> UInt16 {
    switch deviceID {
    case 1: 0x1000
    case 2: 0x1001
    case 3: 0x1003
    case 4: 0x1005
    case 5: 0x1002
    case 8: 0x1004
    case 9: 0x1009
    default: 0x103f
    }
  }

  /// Writes the bits that can be written. - Parameter offset: any; bytes outside the space have no effect.
  mutating func write(_ offset: Int, _ new: [UInt8]) {
    for (index, byte) in new.enumerated() where bytes.indices.contains(offset + index) {
      let mask = writable[offset + index]
      bytes[offset + index] = bytes[offset + index] & ~mask | byte & mask
    }
  }

  mutating func setWindowData(_ new: [UInt8]) {
    for (index, byte) in new.prefix(4).enumerated() { bytes[Self.windowData + index] = byte }
  }

  func half(_ offset: Int) -> UInt16 { UInt16(AccessBytes.number(bytes[offset..<offset + 2])) }
  func word(_ offset: Int) -> UInt32 { UInt32(AccessBytes.number(bytes[offset..<offset + 4])) }

  func commands(_ bit: UInt16) -> Bool { half(Self.command) & bit != 0 }
  /// Interrupts are sent as messages, not through the INTx line.
  var isMSIXEnabled: Bool { half(Self.msix + 2) & 0x8000 != 0 }
  var isMSIXMasked: Bool { half(Self.msix + 2) & 0x4000 != 0 }

  /// The address in a BAR; `nil` for an upper half, or if there is no such BAR.
  func barAddress(_ index: Int) -> UInt64? {
    guard (0..<6).contains(index) else { return nil }
    let at = Self.barOffset + index * 4
    guard writable[at + 3] != 0, index != PCILayout.virtioBar + 1 else { return nil }
    let low = word(at)
    if low & 1 != 0 { return UInt64(low & ~3) }
    return UInt64(low & ~15) | (low & 4 != 0 ? UInt64(word(at + 4)) << 32 : 0)
  }

  /// Bytes that a BAR decodes; `nil` if there is no such BAR.
  func barSize(_ index: Int) -> UInt64? {
    guard barAddress(index) != nil else { return nil }
    let at = Self.barOffset + index * 4
    let mask = UInt32(AccessBytes.number(writable[at..<at + 4]))
    return UInt64(~mask) + 1
  }

  func isPort(_ index: Int) -> Bool { word(Self.barOffset + index * 4) & 1 != 0 }
}
