/// The register interfaces that a device can have, by name and number.

/// The interface that a driver finds: one of the specification's two buses with registers, in its modern or its legacy form.
/// The numbers are part of the memory file's format (Docs/memory-file.md).
public enum RegisterInterface: UInt32, CaseIterable, Hashable, Sendable {
  /// virtio-mmio version 2 (virtio 4.2.2).
  case mmio = 0
  /// virtio-mmio version 1 (virtio 4.2.4).
  case mmioLegacy = 1
  /// virtio-pci without the legacy interface (virtio 4.1).
  case pci = 2
  /// virtio-pci of devices before version 1.0: only the I/O BAR (virtio 4.1.4.8).
  case pciLegacy = 3
  /// virtio-pci with both (virtio 4.1.2.3).
  case pciTransitional = 4

  /// Its name on a command line.
  public var name: String {
    switch self {
    case .mmio: "mmio"
    case .mmioLegacy: "mmio-legacy"
    case .pci: "pci"
    case .pciLegacy: "pci-legacy"
    case .pciTransitional: "pci-transitional"
    }
  }

  public init?(name: String) {
    guard let found = Self.allCases.first(where: { $0.name == name }) else { return nil }
    self = found
  }

  public var isPCI: Bool {
    switch self {
    case .pci, .pciLegacy, .pciTransitional: true
    case .mmio, .mmioLegacy: false
    }
  }

  /// A driver that does not know VERSION_1 can use the device.
  public var hasLegacy: Bool {
    switch self {
    case .mmioLegacy, .pciLegacy, .pciTransitional: true
    case .mmio, .pci: false
    }
  }

  /// A driver that accepts VERSION_1 can use the device.
  public var hasModern: Bool {
    switch self {
    case .mmio, .pci, .pciTransitional: true
    case .mmioLegacy, .pciLegacy: false
    }
  }
}
