/// The state of the registers as bytes, from which another process can continue where a device stopped. The offsets are part of
/// the memory file's format (Docs/memory-file.md).
public import VirtioCore

/// Everything that a driver has written to the registers. A plain record: when it is read back it is as trustworthy as a
/// driver, and it is restored by performing the register writes that it stands for (`RegisterModel.restore`).
public struct RegisterImage: Hashable, Sendable {
  /// One queue's registers.
  public struct Queue: Hashable, Sendable {
    public var configuration: QueueConfiguration
    public var ready: Bool
    /// Where a packed queue was stopped, with nothing in flight, because guest memory does not contain this position. `nil`
    /// while it runs, and for a split queue.
    public var position: PackedPosition?
    /// The alignment of the used ring in the legacy layout, bytes, a power of two.
    public var alignment: UInt32

    public init(
      configuration: QueueConfiguration, ready: Bool, position: PackedPosition? = nil, alignment: UInt32 = 4096
    ) {
      self.configuration = configuration
      self.ready = ready
      self.position = position
      self.alignment = alignment
    }

    /// Bit 0: QueueReady. Bit 1: there is a position, in bits 16 … 31. Bits 8 … 15: 0 for an alignment of 4096, otherwise its
    /// exponent plus one.
    fileprivate var readyWord: UInt32 {
      (ready ? 1 : 0) | (position.map { 2 | UInt32($0.rawValue) << 16 } ?? 0)
        | (alignment == DeviceRegisters.defaultAlignment ? 0 : UInt32(alignment.trailingZeroBitCount + 1) << 8)
    }
  }

  public var status = DeviceStatus()
  public var deviceFeaturesSelect: UInt32 = 0
  public var driverFeaturesSelect: UInt32 = 0
  public var queueSelect: UInt32 = 0
  public var driverFeatures = FeatureSet()
  /// The driver accepted a bit above 63.
  public var strayFeatures = false
  /// GuestPageSize of virtio-mmio version 1, bytes; 0 if it was not written.
  public var guestPageSize: UInt32 = 0
  /// A legacy driver uses its queues before DRIVER_OK.
  public var servesEarly = false
  /// The additional state of a PCI function.
  public var pci: PCIImage?
  public var queues: [Queue] = []
  public var configurationWrites = ConfigurationWrites()

  public init() {}

  /// Bytes of an image with room for `queueCount` queues.
  public static func size(queueCount: Int, interface: RegisterInterface = .mmio) -> Int {
    queuesOffset + queueCount * queueSize + (interface.isPCI ? PCIImage.size(queueCount: queueCount) : 0)
  }

  static let queuesOffset = 0x240
  static let queueSize = 32

  /// The image in `size(queueCount:)` bytes; queues beyond `queueCount` are left out, missing ones are zero.
  public func encoded(queueCount: Int, interface: RegisterInterface = .mmio) -> [UInt8] {
    let size = Self.size(queueCount: queueCount, interface: interface)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(size)
    bytes.append(word: UInt32(status.rawValue))
    bytes.append(word: deviceFeaturesSelect)
    bytes.append(word: driverFeaturesSelect)
    bytes.append(word: queueSelect)
    bytes.append(word: driverFeatures.rawValue)
    bytes.append(word: UInt32(strayFeatures ? 1 : 0))
    bytes.append(word: UInt32(min(queues.count, queueCount)))
    bytes.append(word: guestPageSize)
    bytes.append(word: UInt32(servesEarly ? 1 : 0))
    bytes += [UInt8](repeating: 0, count: 0x40 - bytes.count)
    bytes += configurationWrites.written.map { $0 ? 1 : 0 }
    bytes += configurationWrites.bytes
    for queue in queues.prefix(queueCount) {
      bytes.append(word: queue.configuration.descriptorTable.rawValue)
      bytes.append(word: queue.configuration.availableRing.rawValue)
      bytes.append(word: queue.configuration.usedRing.rawValue)
      bytes.append(word: UInt32(queue.configuration.size))
      bytes.append(word: queue.readyWord)
    }
    bytes += [UInt8](repeating: 0, count: Self.size(queueCount: queueCount) - bytes.count)
    if interface.isPCI { bytes += (pci ?? PCIImage()).encoded(queueCount: queueCount) }
    return bytes
  }

  /// Decodes an image. Any bytes make some image; one that is too short for the queues it claims has as many as fit.
  ///
  /// - Parameter queueCount: queues that it has room for, which determines where the PCI part begins.
  public init(decoding bytes: [UInt8], queueCount: Int, interface: RegisterInterface) {
    let end = min(bytes.count, Self.size(queueCount: queueCount))
    self.init(decoding: Array(bytes[..<end]))
    if interface.isPCI { pci = PCIImage(decoding: bytes[end...], queueCount: queueCount) }
  }

  /// Decodes an image without a PCI part.
  public init(decoding bytes: [UInt8]) {
    self.init()
    guard bytes.count >= Self.queuesOffset else { return }
    status = DeviceStatus(rawValue: UInt8(truncatingIfNeeded: bytes.word(at: 0x00, as: UInt32.self)))
    deviceFeaturesSelect = bytes.word(at: 0x04, as: UInt32.self)
    driverFeaturesSelect = bytes.word(at: 0x08, as: UInt32.self)
    queueSelect = bytes.word(at: 0x0c, as: UInt32.self)
    driverFeatures = FeatureSet(rawValue: bytes.word(at: 0x10, as: UInt64.self))
    strayFeatures = bytes.word(at: 0x18, as: UInt32.self) != 0
    guestPageSize = bytes.word(at: 0x20, as: UInt32.self)
    servesEarly = bytes.word(at: 0x24, as: UInt32.self) != 0
    for index in 0..<ConfigurationWrites.capacity where bytes[0x40 + index] != 0 {
      configurationWrites.record(at: index, [bytes[0x140 + index]])
    }
    let claimed = Int(bytes.word(at: 0x1c, as: UInt32.self))
    let count = min(claimed, (bytes.count - Self.queuesOffset) / Self.queueSize)
    for index in 0..<count {
      let at = Self.queuesOffset + index * Self.queueSize
      let size = bytes.word(at: at + 24, as: UInt32.self)
      let ready = bytes.word(at: at + 28, as: UInt32.self)
      queues.append(
        Queue(
          configuration: QueueConfiguration(
            size: UInt16(exactly: size) ?? 0,
            descriptorTable: GuestAddress(bytes.word(at: at, as: UInt64.self)),
            availableRing: GuestAddress(bytes.word(at: at + 8, as: UInt64.self)),
            usedRing: GuestAddress(bytes.word(at: at + 16, as: UInt64.self))),
          ready: ready & 1 != 0,
          position: ready & 2 != 0 ? PackedPosition(rawValue: UInt16(truncatingIfNeeded: ready >> 16)) : nil,
          alignment: Self.alignment(exponent: ready >> 8 & 0xff)))
    }
  }
}

extension RegisterImage {
  /// - Parameter exponent: the exponent plus one; 0 and invalid values stand for 4096.
  private static func alignment(exponent: UInt32) -> UInt32 {
    (1...32).contains(exponent) ? 1 << (exponent - 1) : DeviceRegisters.defaultAlignment
  }
}

extension [UInt8] {
  mutating func append<Word: FixedWidthInteger>(word: Word) {
    for shift in stride(from: 0, to: Word.bitWidth, by: 8) { append(UInt8(truncatingIfNeeded: word >> Word(shift))) }
  }

  /// The word at an offset, little-endian. The caller has checked that it is within the array.
  func word<Word: FixedWidthInteger>(at offset: Int, as: Word.Type) -> Word {
    self[offset..<offset + Word.bitWidth / 8].reversed().reduce(0) { $0 << 8 | Word(truncatingIfNeeded: $1) }
  }
}
