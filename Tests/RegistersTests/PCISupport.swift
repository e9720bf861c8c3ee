/// PCI functions of a simulated device, and what firmware and drivers do with them.
import Synchronization
import VirtioCore
import VirtioRegisters

extension Made {
  func function(
    _ interface: RegisterInterface = .pci, features: FeatureSet = Made.features, queues: Int = 3, size: UInt16 = 256
  ) -> PCIRegisters {
    PCIRegisters(face: face(features: features, queues: queues, size: size), interface: interface)
  }

  func legacy(features: FeatureSet = Made.features) -> LegacyMMIORegisters {
    LegacyMMIORegisters(face: face(features: features))
  }
}

/// The location that a capability in the list describes.
struct Capability: Equatable {
  var type: UInt8
  var at: UInt32
  var length: UInt8
  var bar: UInt8
  var offset: UInt32
  var size: UInt32
}

extension PCIRegisters {
  @discardableResult mutating func get(_ space: Space, _ offset: UInt32, _ width: Int) -> UInt64 {
    read(space, offset: offset, width: width).value
  }

  @discardableResult mutating func put(_ space: Space, _ offset: UInt32, _ width: Int, _ value: UInt64) -> [Effect] {
    write(space, offset: offset, width: width, value: value)
  }

  mutating func config(_ offset: UInt32, _ width: Int) -> UInt64 { get(.configuration, offset, width) }

  /// Enables BARs and bus mastering, as `pci_enable_device` and `pci_set_master` do.
  mutating func enable() {
    put(.configuration, 0x10, 4, 0xc000)
    put(.configuration, 0x14, 4, 0xe000_0000)
    put(.configuration, 0x20, 4, 0xf000_0000)
    put(.configuration, 0x24, 4, 0x12)
    put(.configuration, 4, 2, 7)
  }

  /// The vendor-specific capabilities, in order (virtio 4.1.4).
  mutating func capabilities() -> [Capability] {
    var found: [Capability] = []
    var at = UInt32(config(0x34, 1))
    while at != 0, found.count < 48 {
      if config(at, 1) == 9 {
        found.append(
          Capability(
            type: UInt8(config(at + 3, 1)), at: at, length: UInt8(config(at + 2, 1)), bar: UInt8(config(at + 4, 1)),
            offset: UInt32(config(at + 8, 4)), size: UInt32(config(at + 12, 4))))
      }
      at = UInt32(config(at + 1, 1))
    }
    return found
  }

  // Fields of the common configuration structure.
  mutating func common(_ offset: UInt32, _ width: Int) -> UInt64 { get(.bar(4), offset, width) }

  @discardableResult mutating func setCommon(_ offset: UInt32, _ width: Int, _ value: UInt64) -> [Effect] {
    put(.bar(4), offset, width, value)
  }

  /// virtio 3.1.1 steps 1 to 6.
  mutating func negotiate(_ features: FeatureSet = [.version1]) {
    for status in [0, 1, 3] as [UInt64] { setCommon(0x14, 1, status) }
    for word in 0..<2 as Range<UInt64> {
      setCommon(0x08, 4, word)
      setCommon(0x0c, 4, features.rawValue >> (word * 32) & 0xffff_ffff)
    }
    setCommon(0x14, 1, 11)
  }

  /// virtio 4.1.5.1.3.
  @discardableResult mutating func setUp(queue: Int, size: UInt16 = 64) -> [Effect] {
    let wanted = QueueConfiguration.sample(queue, size: size)
    setCommon(0x16, 2, UInt64(queue))
    setCommon(0x18, 2, UInt64(size))
    for (offset, address) in [(0x20 as UInt32, wanted.descriptorTable), (0x28, wanted.availableRing), (0x30, wanted.usedRing)] {
      setCommon(offset, 4, address.rawValue & 0xffff_ffff)
      setCommon(offset + 4, 4, address.rawValue >> 32)
    }
    return setCommon(0x1c, 2, 1)
  }

  /// A function after DRIVER_OK with every queue ready.
  static func live(_ made: Made, _ interface: RegisterInterface = .pci, features: FeatureSet = [.version1]) -> PCIRegisters {
    var function = made.function(interface)
    function.enable()
    function.negotiate(features)
    for queue in 0..<3 { function.setUp(queue: queue) }
    function.setCommon(0x14, 1, 15)
    return function
  }

  var msixControl: UInt32 { 0x9a }

  /// MSI-X is enabled, and every vector unmasked with its own message.
  mutating func openVectors() {
    for vector in 0..<4 as Range<UInt32> {
      put(.bar(1), vector * 16, 4, 0xfee0_0000)
      put(.bar(1), vector * 16 + 4, 4, 1)
      put(.bar(1), vector * 16 + 8, 4, UInt64(0x40 + vector))
      put(.bar(1), vector * 16 + 12, 4, 0)
    }
    put(.configuration, msixControl, 2, 0x8000)
  }
}

extension QueueConfiguration {
  /// The legacy ring at a page, with 256 entries.
  static func legacySample(page: UInt64, pageSize: UInt64 = 4096, size: UInt16 = 256, alignment: UInt64 = 4096) -> Self {
    let base = page * pageSize
    let (available, parts) = (16 * UInt64(size), 18 * UInt64(size) + 6)
    return QueueConfiguration(
      size: size, descriptorTable: GuestAddress(base), availableRing: GuestAddress(base + available),
      usedRing: GuestAddress(base + (parts + alignment - 1) / alignment * alignment))
  }
}
