/// The registers that all buses have in common: negotiation, queues, and the effects of writes to them.
internal import VirtioCore

/// The part that all register faces share, as a value. A face turns its driver's accesses into calls of this.
public struct DeviceRegisters: Sendable {
  public typealias Effect = RegisterEffect

  /// One queue as the driver has described it so far.
  struct Queue: Hashable, Sendable {
    var configuration: QueueConfiguration
    var ready = false
    /// A queue reset is in progress (RING_RESET).
    var resetting = false
    /// The alignment of the used ring in the legacy layout, bytes: QueueAlign (virtio 4.2.4); over PCI always the default
    /// (virtio 4.1.5.1.3.1).
    var alignment = defaultAlignment
    /// MSI-X vector, `noVector` if there is none. Not used by buses without vectors.
    var vector = noVector

    init(maximumSize: UInt16) {
      let zero = GuestAddress(0)
      configuration = QueueConfiguration(size: maximumSize, descriptorTable: zero, availableRing: zero, usedRing: zero)
    }
  }

  static let defaultAlignment: UInt32 = 4096
  /// VIRTIO_MSI_NO_VECTOR (virtio 4.1.5.1.2).
  static let noVector: UInt16 = 0xffff
  /// Mask of the pending interrupt bits, the same in InterruptStatus and ISR: a buffer was used, the configuration changed.
  static let interruptBits: UInt32 = 3

  let face: RegisterFace
  let interface: RegisterInterface
  /// Feature bits that the register face handles itself: the device is neither asked nor told about them.
  let own: FeatureSet
  var negotiation: Negotiation
  var deviceFeaturesSelect: UInt32 = 0
  var driverFeaturesSelect: UInt32 = 0
  var queueSelect: UInt32 = 0
  var queues: [Queue]
  var configurationWrites = ConfigurationWrites()
  /// A legacy driver has used a queue before DRIVER_OK, which a device has to tolerate (virtio 3.1.2).
  var servesEarly = false
  /// The device may access memory. Always true except on PCI.
  var isMaster: Bool
  /// Present while the device is suspended.
  var suspension: Suspension?

  init(face: RegisterFace, interface: RegisterInterface) {
    self.face = face
    self.interface = interface
    // NOTIF_CONFIG_DATA is for PCI only; a device with the legacy interface offers ANY_LAYOUT (virtio 6.3), which every device
    // here supports.
    var own = FeatureSet()
    if interface.isPCI, interface.hasModern { own.insert(.notificationConfigurationData) }
    own.subtract(face.withheld)
    if interface.hasLegacy { own.insert(.anyLayout) }
    self.own = own
    var offered = face.features.subtracting(Self.untransportable)
    if !interface.hasModern { offered.formIntersection(Self.legacyWord) }
    negotiation = Negotiation(offered: offered.union(own))
    queues = Array(repeating: Queue(maximumSize: face.maximumQueueSize), count: max(face.queueCount, 0))
    isMaster = !interface.isPCI
  }

  /// Bits that are not offered even if the device has them (virtio 2.2.2): SR_IOV and ADMIN_VQ need capabilities that this PCI
  /// function does not have, NOTIFY_ON_EMPTY and UNUSED belong to legacy devices (virtio 6.3) and are not implemented; the
  /// others are in `own` if they are offered.
  private static let untransportable: FeatureSet = [
    .singleRootIO, .notificationConfigurationData, FeatureSet(bit: 41), .notifyOnEmpty, .anyLayout, FeatureSet(bit: 30),
  ]
  /// The bits for which the legacy interface has a word (virtio 4.1.4.8).
  static let legacyWord = FeatureSet(rawValue: 0xffff_ffff)
  /// VIRTIO_BLK_F_ZONED, which no legacy device offers (virtio 5.2.5.2).
  private static let blockZoned = FeatureSet(bit: 17)

  var status: DeviceStatus { negotiation.status }
  /// The driver's choice so far, without the bits of the register face; fixed once FEATURES_OK is set.
  var features: FeatureSet { negotiation.accepted.subtracting(own) }
  /// The driver uses the device: notifications may be sent.
  var isInUse: Bool { status.contains(.driverOK) || servesEarly }
  /// Queues that are ready are served.
  var isLive: Bool { isInUse && !status.contains(.needsReset) && isMaster }

  // MARK: Features

  /// 32 of the offered feature bits; words that do not exist read as zero.
  func offeredWord(_ select: UInt32, isLegacy: Bool = false) -> UInt32 {
    var shown = negotiation.offered
    if isLegacy {
      shown.formIntersection(Self.legacyWord)
      if face.deviceID == 2 { shown.remove(Self.blockZoned) }
    } else if interface.hasModern {
      shown.remove(.anyLayout)
    }
    return Self.word(select, of: shown)
  }

  static func word(_ select: UInt32, of features: FeatureSet) -> UInt32 {
    select < 2 ? UInt32(truncatingIfNeeded: features.rawValue >> (UInt64(select) * 32)) : 0
  }

  mutating func acceptWord(_ select: UInt32, _ bits: UInt32) {
    guard !servesEarly else { return }
    negotiation.acceptWord(select, bits)
  }

  /// A legacy driver's choice: bits 32 to 63 count as not accepted (virtio 4.1.4.8). Without FEATURES_OK, bits that were not
  /// offered cannot be refused, so they are dropped immediately.
  mutating func acceptLegacy(_ bits: UInt32) {
    acceptWord(0, bits & offeredWord(0, isLegacy: true))
    acceptWord(1, 0)
  }

  // MARK: Status

  /// A write to the status field (virtio 2.1).
  ///
  /// - Parameter isLegacy: through the legacy interface, which has no FEATURES_OK (virtio 3.1.2).
  mutating func writeStatus(_ value: UInt32, isLegacy: Bool = false) -> [Effect] {
    // The field has eight bits. Only legacy drivers set DRIVER_OK without FEATURES_OK: from others it is ignored (virtio
    // 3.1.1).
    var bits = DeviceStatus(rawValue: UInt8(truncatingIfNeeded: value))
    if value != 0, bits.isEmpty { return [] }
    if isLegacy {
      bits.remove(.featuresOK)
    } else if !bits.union(status).contains(.featuresOK) {
      bits.remove(.driverOK)
    }
    if value != 0, bits.isEmpty { return [] }
    let (accepts, own) = (face.accepts, own)
    let answers = negotiation.writeStatus(bits.rawValue) { features in
      guard isLegacy || features.contains(.version1) && !features.contains(.anyLayout) else { return false }
      return accepts(features.subtracting(own))
    }
    var effects: [Effect] = []
    for answer in answers {
      switch answer {
      case .reset:
        let isMaster = isMaster
        self = DeviceRegisters(face: face, interface: interface)
        self.isMaster = isMaster
        effects.append(.reset)
      case .featuresFixed(let features):
        if !servesEarly { effects.append(.featuresFixed(features.subtracting(own))) }
      case .live:
        guard !servesEarly else { continue }
        effects.append(.live)
        effects += startReadyQueues()
      case .suspended: effects += suspend()
      case .resumed: effects += resume()
      }
    }
    return effects
  }

  func startReadyQueues() -> [Effect] {
    guard isLive else { return [] }
    return queues.indices.filter { queues[$0].ready && !queues[$0].resetting }
      .map { .startQueue($0, queues[$0].configuration) }
  }

  /// Begins to serve a legacy driver that has not set DRIVER_OK yet.
  mutating func serveEarly() -> [Effect] {
    guard interface.hasLegacy, !isInUse, status.isDisjoint(with: [.featuresOK, .needsReset]) else { return [] }
    guard !negotiation.accepted.contains(.version1), face.accepts(features) else { return [] }
    servesEarly = true
    return [.featuresFixed(features), .live] + startReadyQueues()
  }

  mutating func setMaster(_ isMaster: Bool) -> [Effect] {
    guard self.isMaster != isMaster else { return [] }
    let wasLive = isLive
    self.isMaster = isMaster
    if isLive { return startReadyQueues() }
    return wasLive ? queues.indices.filter { queues[$0].ready && !queues[$0].resetting }.map { .pauseQueue($0) } : []
  }
}
