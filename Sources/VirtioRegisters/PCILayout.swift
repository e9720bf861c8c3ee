/// The layout of the BARs of a virtio-pci function (virtio 4.1.4), which depends on the number of its queues.

/// The layout of one function, fixed for its life.
struct PCILayout: Hashable, Sendable {
  /// I/O: the legacy block (virtio 4.1.4.8).
  static let legacyBar = 0
  /// 32-bit memory: MSI-X table and pending bits.
  static let msixBar = 1
  /// 64-bit memory: the virtio structures. BAR 5 is its upper half.
  static let virtioBar = 4

  static let legacySize: UInt32 = 0x100
  static let commonOffset: UInt32 = 0
  static let commonSize: UInt32 = 0x40
  static let isrOffset: UInt32 = 0x1000
  static let deviceOffset: UInt32 = 0x2000
  static let deviceSize: UInt32 = 0x1000
  static let notifyOffset: UInt32 = 0x4000
  /// A power of two and a multiple of four, as NOTIFICATION_DATA needs (virtio 4.1.4.4.1): each queue has its own address.
  static let notifyMultiplier: UInt32 = 4

  let notifySize: UInt32
  let virtioSize: UInt32
  /// One for each queue and one for the configuration, 2 … 2048 (virtio 4.1.5.1.2.1).
  let vectors: Int
  let pendingOffset: UInt32
  let msixSize: UInt32

  init(queueCount: Int) {
    let queues = UInt32(min(max(queueCount, 1), 0x1_0000))
    notifySize = queues * Self.notifyMultiplier
    virtioSize = Self.powerOfTwo(Self.notifyOffset + notifySize)
    vectors = Int(min(max(queues + 1, 2), 2048))
    let table = UInt32(vectors) * 16
    pendingOffset = (table + 0x7ff) / 0x800 * 0x800
    msixSize = Self.powerOfTwo(max(pendingOffset + UInt32(vectors + 63) / 64 * 8, 0x1000))
  }

  private static func powerOfTwo(_ size: UInt32) -> UInt32 {
    size <= 1 ? 1 : 1 << UInt32(32 - (size - 1).leadingZeroBitCount)
  }
}
