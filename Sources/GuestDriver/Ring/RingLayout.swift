/// Where the three parts of a ring are in guest memory (virtio 2.6, 2.7, and 2.6.2 for the legacy layout).
public import VirtioCore

/// The two formats of a virtqueue.
public enum RingFormat: String, CaseIterable, Hashable, Sendable {
  /// Table, available ring and used ring (virtio 2.6).
  case split
  /// One ring of descriptors that both sides write (virtio 2.7).
  case packed

  /// What was negotiated.
  public init(_ features: FeatureSet) { self = features.contains(.packedRing) ? .packed : .split }
}

/// Size and addresses of one ring, as the driver chose them.
public struct RingLayout: Hashable, Sendable {
  public let format: RingFormat
  /// Entries, 1 to 32768; of a split ring a power of two.
  public let size: UInt16
  /// Packed: the descriptor ring.
  public let descriptorTable: GuestAddress
  /// Packed: the driver's event suppression structure.
  public let availableRing: GuestAddress
  /// Packed: the device's event suppression structure.
  public let usedRing: GuestAddress

  public init(
    format: RingFormat = .split, size: UInt16, descriptorTable: GuestAddress, availableRing: GuestAddress,
    usedRing: GuestAddress
  ) {
    self.format = format
    self.size = size
    self.descriptorTable = descriptorTable
    self.availableRing = availableRing
    self.usedRing = usedRing
  }

  /// Bytes of each part, with the event words at the ends.
  public static func descriptorTableBytes(_ size: UInt16) -> Int { 16 * Int(size) }
  public static func availableRingBytes(_ size: UInt16) -> Int { 6 + 2 * Int(size) }
  public static func usedRingBytes(_ size: UInt16) -> Int { 6 + 8 * Int(size) }
  /// Bytes of either event suppression structure of a packed ring.
  public static let eventBytes = 4

  /// Whether a ring of this format can have that many entries.
  public static func allows(_ size: UInt16, _ format: RingFormat) -> Bool {
    (1...32768).contains(size) && (format == .packed || size & (size - 1) == 0)
  }

  /// Offsets in the one region of a legacy ring. - Parameter alignment: of the used ring, a power of two.
  public static func legacyOffsets(_ size: UInt16, alignment: Int) -> (available: Int, used: Int, total: Int) {
    let available = descriptorTableBytes(size)
    let used = (available + availableRingBytes(size) + alignment - 1) / alignment * alignment
    return (available, used, used + (usedRingBytes(size) + alignment - 1) / alignment * alignment)
  }

  /// The configuration for a transport.
  public var configuration: QueueConfiguration {
    QueueConfiguration(
      size: size, descriptorTable: descriptorTable, availableRing: availableRing, usedRing: usedRing)
  }
}

/// How to lay out a ring.
public enum RingShape: Hashable, Sendable {
  /// Three parts with no more alignment than they need, each with guards around it.
  case separate
  /// One region, the used ring on the next multiple of `alignment` bytes.
  case legacy(alignment: Int = 4096)
}

/// A ring's memory, for as long as the ring lives.
public struct RingMemory: Sendable {
  public let layout: RingLayout
  let buffers: [GuestBuffer]

  /// Takes zeroed memory for a ring (virtio 2.6.10.1: the driver starts with zeroed flags; 2.7.1: and with a zeroed ring).
  ///
  /// - Precondition: a legal size; there is no legacy layout of a packed ring.
  public init(size: UInt16, format: RingFormat = .split, shape: RingShape, in memory: DriverMemory) throws(DriverError) {
    precondition(RingLayout.allows(size, format), "a \(format) ring cannot have \(size) entries")
    switch (format, shape) {
    case (.packed, .legacy): preconditionFailure("there is no legacy layout of a packed ring")
    case (.packed, .separate):
      // With no more alignment than virtio 2.7.10.1 requires.
      let ring = try memory.allocate(RingLayout.descriptorTableBytes(size), alignment: 16)
      let driver = try memory.allocate(RingLayout.eventBytes, alignment: 4)
      let device = try memory.allocate(RingLayout.eventBytes, alignment: 4)
      buffers = [ring, driver, device]
      layout = RingLayout(
        format: .packed, size: size, descriptorTable: ring.address, availableRing: driver.address, usedRing: device.address)
    case (.split, .separate):
      let table = try memory.allocate(RingLayout.descriptorTableBytes(size), alignment: 16)
      let available = try memory.allocate(RingLayout.availableRingBytes(size), alignment: 2)
      let used = try memory.allocate(RingLayout.usedRingBytes(size), alignment: 4)
      buffers = [table, available, used]
      layout = RingLayout(
        size: size, descriptorTable: table.address, availableRing: available.address, usedRing: used.address)
    case (.split, .legacy(let alignment)):
      let (available, used, total) = RingLayout.legacyOffsets(size, alignment: alignment)
      let whole = try memory.allocate(total, alignment: max(alignment, 4096))
      buffers = [whole]
      layout = RingLayout(
        size: size, descriptorTable: whole.address,
        availableRing: GuestAddress(whole.address.rawValue + UInt64(available)),
        usedRing: GuestAddress(whole.address.rawValue + UInt64(used)))
    }
    for buffer in buffers { buffer.fill(0) }
  }

  /// The first byte next to the ring that somebody wrote to.
  public func damage(in memory: DriverMemory) -> GuestAddress? {
    for buffer in buffers { if let address = memory.damage(around: buffer) { return address } }
    return nil
  }

  public func release(to memory: DriverMemory) { for buffer in buffers { memory.release(buffer) } }
}
