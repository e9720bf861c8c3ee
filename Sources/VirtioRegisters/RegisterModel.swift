/// The register interface of a device, whichever it is, behind one offset: this is what a mailbox needs.
public import VirtioCore

/// A register interface chosen at run time. The spaces of PCI share one 32-bit offset: bits 28 to 31 are 0 for the
/// configuration space and 1 + n for BAR n, and the other bits are the offset in it.
public enum RegisterModel: RegisterWindow {
  case mmio(MMIORegisters)
  case legacyMMIO(LegacyMMIORegisters)
  case pci(PCIRegisters)

  public init(_ interface: RegisterInterface, face: RegisterFace) {
    switch interface {
    case .mmio: self = .mmio(MMIORegisters(face: face))
    case .mmioLegacy: self = .legacyMMIO(LegacyMMIORegisters(face: face))
    case .pci, .pciLegacy, .pciTransitional: self = .pci(PCIRegisters(face: face, interface: interface))
    }
  }

  public var device: DeviceRegisters {
    get {
      switch self {
      case .mmio(let registers): registers.device
      case .legacyMMIO(let registers): registers.device
      case .pci(let registers): registers.device
      }
    }
    set {
      switch self {
      case .mmio(var registers):
        registers.device = newValue
        self = .mmio(registers)
      case .legacyMMIO(var registers):
        registers.device = newValue
        self = .legacyMMIO(registers)
      case .pci(var registers):
        registers.device = newValue
        self = .pci(registers)
      }
    }
  }

  public var interface: RegisterInterface { device.interface }
  /// The features offered to a driver, those of the register face included.
  public var offered: FeatureSet { device.negotiation.offered }

  /// The combined offset for a place in a PCI space. - Parameter offset: in that space, below 2^28.
  public static func offset(_ space: PCIRegisters.Space, _ offset: UInt32) -> UInt32 {
    switch space {
    case .configuration: offset
    case .bar(let index): UInt32(index + 1) << 28 | offset
    }
  }

  /// The space behind an offset; `nil` if there is none.
  private static func place(_ offset: UInt32) -> (space: PCIRegisters.Space, offset: UInt32)? {
    let rest = offset & 0x0fff_ffff
    switch offset >> 28 {
    case 0: return (.configuration, rest)
    case 1...6: return (.bar(Int(offset >> 28) - 1), rest)
    default: return nil
    }
  }

  /// A read of `width` bytes at any offset; it can have effects.
  public mutating func read(offset: UInt32, width: Int) -> (value: UInt64, effects: [Effect]) {
    switch self {
    case .mmio(let registers): return (registers.read(offset: offset, width: width), [])
    case .legacyMMIO(let registers): return (registers.read(offset: offset, width: width), [])
    case .pci(var registers):
      guard let place = Self.place(offset) else { return (AccessBytes.ones(width: width), []) }
      let answer = registers.read(place.space, offset: place.offset, width: width)
      self = .pci(registers)
      return answer
    }
  }

  /// A write of the low `width` bytes of `value` at any offset.
  public mutating func write(offset: UInt32, width: Int, value: UInt64) -> [Effect] {
    switch self {
    case .mmio(var registers):
      let effects = registers.write(offset: offset, width: width, value: value)
      self = .mmio(registers)
      return effects
    case .legacyMMIO(var registers):
      let effects = registers.write(offset: offset, width: width, value: value)
      self = .legacyMMIO(registers)
      return effects
    case .pci(var registers):
      guard let place = Self.place(offset) else { return [] }
      let effects = registers.write(place.space, offset: place.offset, width: width, value: value)
      self = .pci(registers)
      return effects
    }
  }

  /// Where a notification goes now.
  public func route(of source: InterruptSource) -> InterruptRoute {
    switch self {
    case .mmio, .legacyMMIO: .line
    case .pci(let registers): registers.route(of: source)
    }
  }

  /// The state as a plain record.
  public var image: RegisterImage {
    switch self {
    case .mmio(let registers): registers.image
    case .legacyMMIO(let registers): registers.image
    case .pci(let registers): registers.image
    }
  }

  /// Registers in the state of a record, and the effects that bring a device to that state.
  ///
  /// - Parameter image: any record; it is checked in the same way as a driver's writes.
  public static func restore(
    _ image: RegisterImage, _ interface: RegisterInterface, face: RegisterFace
  ) -> (registers: RegisterModel, effects: [Effect], restoration: Restoration) {
    switch interface {
    case .mmio:
      let (registers, effects, restoration) = MMIORegisters.restore(image, face: face)
      return (.mmio(registers), effects, restoration)
    case .mmioLegacy:
      let (registers, effects, restoration) = LegacyMMIORegisters.restore(image, face: face)
      return (.legacyMMIO(registers), effects, restoration)
    case .pci, .pciLegacy, .pciTransitional:
      let (registers, effects, restoration) = PCIRegisters.restore(image, face: face, interface: interface)
      return (.pci(registers), effects, restoration)
    }
  }
}
