/// virtio-mmio version 2 (virtio 4.2.2) as a value: a register access goes in, a number or a list of effects comes out.
public import VirtioCore

/// The register window of one device. It performs nothing itself: whoever owns it carries out the effects, in order, before
/// it answers the driver's write, so that a value read back afterwards (QueueReady, Status) tells that the work is done.
public struct MMIORegisters: Sendable {
  /// What a write asks of the owner.
  public enum Effect: Hashable, Sendable {
    /// The driver's choice of features is fixed now.
    case featuresFixed(FeatureSet)
    /// DRIVER_OK: notifications may be sent, queues are served. One `startQueue` for each ready queue follows.
    case live
    /// Serve the queue. The numbers are the driver's and unchecked but for the size.
    case startQueue(Int, QueueConfiguration)
    /// Finish what is in flight and let go of the queue's memory.
    case stopQueue(Int)
    /// As `stopQueue`; then call `queueResetFinished` (QueueReset, virtio 2.6.1).
    case resetQueue(Int)
    /// Available buffer notification for a queue that is being served.
    case notify(Int)
    /// Clear these bits of the pending interrupts.
    case acknowledgeInterrupt(UInt32)
    /// The driver writes to the device's configuration space.
    case configWrite(offset: Int, bytes: [UInt8])
    /// Stop every queue, forget the driver and clear the pending interrupts.
    case reset
  }

  /// The offsets that have a register (virtio 4.2.2, table 4.1).
  public enum Register: UInt32, CaseIterable, Sendable {
    case magicValue = 0x000
    case version = 0x004
    case deviceID = 0x008
    case vendorID = 0x00c
    case deviceFeatures = 0x010
    case deviceFeaturesSelect = 0x014
    case driverFeatures = 0x020
    case driverFeaturesSelect = 0x024
    case queueSelect = 0x030
    case queueSizeMaximum = 0x034
    case queueSize = 0x038
    case queueReady = 0x044
    case queueNotify = 0x050
    case interruptStatus = 0x060
    case interruptAcknowledge = 0x064
    case status = 0x070
    case queueDescriptorLow = 0x080
    case queueDescriptorHigh = 0x084
    case queueDriverLow = 0x090
    case queueDriverHigh = 0x094
    case queueDeviceLow = 0x0a0
    case queueDeviceHigh = 0x0a4
    case sharedMemorySelect = 0x0ac
    case sharedMemoryLengthLow = 0x0b0
    case sharedMemoryLengthHigh = 0x0b4
    case sharedMemoryBaseLow = 0x0b8
    case sharedMemoryBaseHigh = 0x0bc
    case queueReset = 0x0c0
    case configurationGeneration = 0x0fc
  }

  /// Where the device-specific configuration space begins.
  public static let configurationOffset: UInt32 = 0x100
  /// "virt", read as a little-endian number.
  public static let magic: UInt32 = 0x7472_6976
  /// Pending interrupt bits (virtio 4.2.2): a buffer was used.
  public static let usedBufferInterrupt: UInt32 = 1
  /// Pending interrupt bits: the configuration changed, or the device needs a reset.
  public static let configurationInterrupt: UInt32 = 2
  static let interruptBits = usedBufferInterrupt | configurationInterrupt
  /// Bits that mean nothing here and are not offered (virtio 2.2.2): SR_IOV, NOTIF_CONFIG_DATA and ADMIN_VQ are PCI's, and
  /// NOTIFY_ON_EMPTY, ANY_LAYOUT and UNUSED belong to legacy devices (virtio 6.3).
  static let untransportable: FeatureSet = [
    .singleRootIO, FeatureSet(bit: 39), FeatureSet(bit: 41), .notifyOnEmpty, .anyLayout, FeatureSet(bit: 30),
  ]

  /// One queue as the driver has described it so far.
  struct Queue: Hashable, Sendable {
    var configuration: QueueConfiguration
    var ready = false
    /// A queue reset is running (RING_RESET).
    var resetting = false

    init(maximumSize: UInt16) {
      let zero = GuestAddress(0)
      configuration = QueueConfiguration(size: maximumSize, descriptorTable: zero, availableRing: zero, usedRing: zero)
    }
  }

  let face: RegisterFace
  var negotiation: Negotiation
  var deviceFeaturesSelect: UInt32 = 0
  var driverFeaturesSelect: UInt32 = 0
  var queueSelect: UInt32 = 0
  var queues: [Queue]
  var configurationWrites = ConfigurationWrites()

  public init(face: RegisterFace) {
    self.face = face
    negotiation = Negotiation(offered: face.features.subtracting(Self.untransportable))
    queues = Array(repeating: Queue(maximumSize: face.maximumQueueSize), count: max(face.queueCount, 0))
  }

  public var status: DeviceStatus { negotiation.status }
  /// What the driver has accepted so far; fixed once FEATURES_OK is set.
  public var features: FeatureSet { negotiation.accepted }
  /// DRIVER_OK is set and the device does not need a reset.
  public var isLive: Bool { negotiation.isLive }
  /// The interrupt line: level, asserted while any bit is pending (virtio 4.2.3.4).
  public var isInterruptAsserted: Bool { face.interruptStatus() & Self.interruptBits != 0 }
  /// The queues that the driver has made ready, served or not, with what it wrote about them.
  public var readyQueues: [(queue: Int, configuration: QueueConfiguration)] {
    queues.indices.filter { queues[$0].ready }.map { ($0, queues[$0].configuration) }
  }

  /// The device cannot go on until it is reset (virtio 2.1.2).
  /// - Returns: whether a configuration change notification is due.
  public mutating func needReset() -> Bool { negotiation.needReset() }

  /// The owner has carried out `resetQueue`: QueueReset and QueueReady read 0 from now on.
  public mutating func queueResetFinished(_ queue: Int) {
    guard queues.indices.contains(queue), queues[queue].resetting else { return }
    queues[queue] = Queue(maximumSize: face.maximumQueueSize)
  }

  /// The device took a `configWrite`: remembered, so that a device that starts again can be given it once more.
  public mutating func configurationWritten(at offset: Int, _ bytes: [UInt8]) {
    configurationWrites.record(at: offset, bytes)
  }
}
