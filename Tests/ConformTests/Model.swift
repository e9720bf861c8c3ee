/// A device as the specification describes it, slow and simple, which acts only when it is stepped. It is a third
/// implementation, and with a planted fault it is what a check has to detect.
import GuestDriver
import VirtioCore

@testable import Conform

/// What a driver sees of the model's registers, which themselves are not modelled.
enum ModelFace: Sendable, CaseIterable {
  case modern, transitional, mmioLegacy, pciLegacy

  var bus: Bus {
    switch self {
    case .modern: .mmio
    case .transitional: .pciTransitional
    case .mmioLegacy: .mmioLegacy
    case .pciLegacy: .pciLegacy
    }
  }
  /// 32 feature bits, a ring in one piece, and no FEATURES_OK.
  var isLegacy: Bool { self == .mmioLegacy || self == .pciLegacy }
}

/// How a device may answer a driver that declined ACCESS_PLATFORM or ORDER_PLATFORM.
enum Insistence: CaseIterable, Sendable { case refusesFeatures, refusesDriverOK, needsReset, saysNothing, failsRequests }

/// State that outlives a driver.
final class ModelDevice {
  static let block = 1024
  static let queueCount = 2
  var disk: [UInt8]
  var other: [UInt8]
  let fault: Fault?
  let face: ModelFace
  let isReadOnly: Bool
  let hasLifetime: Bool
  let hasFlush: Bool
  var sectors: UInt64
  var generation: UInt32 = 0
  var changes = 0
  var writeback: UInt8 = 1
  var firstByte: UInt8?
  // Used by faults only.
  var isDead = false
  var lives = 0
  var reads = 0
  var negotiations = 0
  var wasLive = false
  /// Features that an earlier driver has declined.
  var wasDeclined = FeatureSet()
  /// A feature that a driver has to accept, and the device's answer if it does not: devices may do that (virtio 6.2).
  var insistence: (on: FeatureSet, by: Insistence)?
  /// The zones of a zoned disk.
  var zones: ModelZones?

  /// - Parameter withAppends: a disk with sequential-write zones, and whether it supports appends; `nil`: without zones.
  init(
    _ fault: Fault?, _ face: ModelFace = .modern, isReadOnly: Bool = false, hasLifetime: Bool = true,
    hasFlush: Bool = true, withAppends: Bool? = nil
  ) {
    self.fault = fault
    self.face = face
    self.isReadOnly = isReadOnly
    self.hasLifetime = hasLifetime
    self.hasFlush = hasFlush
    disk = [UInt8](repeating: 0, count: 256 << 10)
    other = disk
    sectors = UInt64(disk.count / 512)
    zones = withAppends.map { ModelZones(sectors: UInt64(disk.count / 512), fault: fault, appends: $0) }
  }

  var offered: FeatureSet {
    var features: FeatureSet = [
      BlockFeature.sizeMax, BlockFeature.segMax, BlockFeature.blockSize, BlockFeature.flush, BlockFeature.configWCE,
      BlockFeature.multiQueue, BlockFeature.discard, BlockFeature.writeZeroes, BlockFeature.secureErase, .anyLayout,
      .indirectDescriptors, .eventIndex, .version1, .packedRing, .inOrder, .orderPlatform, .ringReset, .accessPlatform,
      .suspend,
    ]
    if !hasFlush { features.subtract([BlockFeature.flush, BlockFeature.configWCE]) }
    if hasLifetime { features.insert(FeatureSet(bit: 15)) }
    if isReadOnly { features.insert(BlockFeature.readOnly) }
    if zones != nil {
      features.insert(BlockFeature.zoned)
      features.subtract([BlockFeature.discard, BlockFeature.secureErase])
    }
    if face.isLegacy { features = FeatureSet(rawValue: features.rawValue & 0xffff_ffff) }
    switch fault {
    case .noAnyLayout: features.remove(.anyLayout)
    case .offersBit30: features.insert(FeatureSet(bit: 30))
    case .offersAdminQueue: features.insert(FeatureSet(bit: 41))
    case .offersConfigWCEAlone: features.remove(BlockFeature.flush)
    case .offersUnknownBit: features.insert(FeatureSet(bit: 44))
    case .offersSRIOV: features.insert(.singleRootIO)
    case .offersZoned: features.insert(FeatureSet(bit: 17))
    case .noVersion1: features = FeatureSet(rawValue: features.rawValue & 0xffff_ffff)
    case .legacyZoned: features = FeatureSet(rawValue: features.rawValue & 0xffff_ffff | 1 << 17)
    default: break
    }
    return features
  }

  func configuration(_ status: DeviceStatus) -> [UInt8] {
    var space = [UInt8](repeating: 0, count: 96)
    func put(_ offset: Int, _ value: UInt64, _ bytes: Int) {
      for index in 0..<bytes { space[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
    }
    put(0, sectors, 8)
    put(8, 1 << 20, 4)
    put(12, 30, 4)
    put(20, UInt64(Self.block), 4)
    put(32, UInt64(writeback), 1)
    put(34, UInt64(Self.queueCount), 2)
    for base in [36, 48, 60] {
      put(base, 64, 4)
      put(base + 4, 4, 4)
    }
    put(44, 2, 4)
    put(68, 2, 4)
    put(56, 1, 1)
    if let zones {
      put(72, ModelZones.size, 4)
      put(76, UInt64(ModelZones.mostOpen), 4)
      put(80, UInt64(ModelZones.mostActive), 4)
      put(84, zones.mostAppend, 4)
      put(88, ModelZones.grain * 512, 4)
      put(92, 1, 1)
      for base in [36, 60] { for field in stride(from: base, to: base + 12, by: 4) { put(field, 0, 4) } }
      if fault == .zonedPadding { put(94, 1, 1) }
    }
    if let firstByte { space[0] = firstByte }
    if fault == .paddingIsNotZero { space[57] = 7 }
    if fault == .configurationComesLate, !status.contains(.featuresOK) { put(48, 0, 4) }
    return space
  }

  func resize(_ bytes: UInt64) {
    if bytes > UInt64(disk.count) {
      disk += [UInt8](repeating: 0, count: Int(bytes) - disk.count)
    } else {
      disk.removeLast(disk.count - Int(bytes))
    }
    other = disk
    sectors = bytes / 512
    if fault != .generationStands { generation += 1 }
    if fault != .resizeIsNotTold { changes += 1 }
  }
}

/// A device with a fault, as the runner sees it.
final class ModelSubject: Subject {
  let name: String
  var bus: Bus { device.face.bus }
  let device: ModelDevice

  init(
    _ fault: Fault? = nil, _ face: ModelFace = .modern, isReadOnly: Bool = false, hasLifetime: Bool = true,
    hasFlush: Bool = true, withAppends: Bool? = nil
  ) {
    device = ModelDevice(
      fault, face, isReadOnly: isReadOnly, hasLifetime: hasLifetime, hasFlush: hasFlush, withAppends: withAppends)
    name = "model\(fault.map { " with \($0)" } ?? "")"
  }

  func connect(_ settings: Settings) throws -> any DriverTransport { try ModelTransport(device) }
  var resize: ((UInt64) throws -> Void)? { device.zones == nil ? { [device] in device.resize($0) } : nil }
  func registers(of transport: any DriverTransport) -> (any RegisterPort)? {
    device.fault == .diesOfOddAccesses ? BrittlePort(device: device) : nil
  }

  /// Meaningless registers, which do not survive an access of a width that none of them has.
  private struct BrittlePort: RegisterPort {
    let device: ModelDevice
    func read(_ offset: UInt32, _ width: Int) -> UInt64 {
      if width == 8 { device.isDead = true }
      return 0
    }
    func write(_ offset: UInt32, _ width: Int, _ value: UInt64) {}
  }
}

/// A driver's transport to it, and all state that lives only as long as that driver.
final class ModelTransport: SteppedTransport {
  let name = "model"
  let memory: DriverMemory
  let device: ModelDevice
  var fault: Fault? { device.fault }
  private(set) var accepted = FeatureSet()
  private var current = DeviceStatus()
  var queues: [ModelQueue] = []
  /// Queues that a faulty reset forgot.
  private var leftOver: [ModelQueue] = []
  private var seenChanges: Int
  private var isFailed = false
  /// The frozen configuration of a suspended device.
  private var still: (space: [UInt8], generation: UInt32)?

  init(_ device: ModelDevice) throws {
    memory = try DriverMemory(anonymous: [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 30), 256 << 10)])
    self.device = device
    seenChanges = device.changes
    if device.wasLive, fault == .diesWithDriver { device.isDead = true }
    device.wasLive = false
  }

  func deviceID() -> UInt32 { 2 }
  var ringShape: RingShape? { device.face.isLegacy ? .legacy() : nil }
  var hasFixedQueueSize: Bool { device.face == .pciLegacy }

  func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    if fault == .diesBeyondConfiguration, offset + count > 96 { device.isDead = true }
    let space = still?.space ?? device.configuration(current)
    if fault == .wholeReadsOnly, count == 1 { return [0] }
    return (offset..<offset + count).map { $0 < space.count ? space[$0] : 0 }
  }

  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) {
    if fault == .configurationIsWritable, offset == 0 { device.firstByte = bytes[0] }
    guard offset == 32, let mode = bytes.first, fault != .writebackSticks else { return }
    guard still == nil || fault == .writesSuspended else { return }
    device.writeback = mode
  }

  func configurationGeneration() -> UInt32 {
    if fault == .generationRuns { device.generation += 1 }
    return still?.generation ?? device.generation
  }

  func status() -> DeviceStatus {
    var status = current
    if isFailed, fault != .hidesFailure { status.insert(.needsReset) }
    if fault == .statusForgetsBit { status.remove(.driver) }
    return status
  }

  func setStatus(_ status: DeviceStatus) {
    guard !status.isEmpty else {
      if [.servesAfterReset, .callsAfterReset].contains(fault) { leftOver = queues }
      queues = []
      accepted = []
      isFailed = false
      still = nil
      current = fault == .statusSurvivesReset ? .acknowledge : []
      device.writeback = 1
      device.wasLive = false
      return
    }
    if status.contains(.needsReset), fault == .diesOfNeedsReset { device.isDead = true }
    if status.rawValue & 0x20 != 0, fault == .diesOfReservedStatus { device.isDead = true }
    if status.contains(.failed), fault == .failedIsForever { device.isDead = true }
    if device.face.isLegacy, fault == .legacyForgetsConfiguration { device.writeback = 1 }
    guard !suspends(status) else { return }
    var wanted = status.union(current).subtracting([.needsReset, .suspend])
    if wanted.contains(.featuresOK), !current.contains(.featuresOK), !accepts() { wanted.remove(.featuresOK) }
    if wanted.contains(.featuresOK), !current.contains(.featuresOK) {
      let isThrough = accepted.contains(BlockFeature.configWCE) && !accepted.contains(BlockFeature.flush)
      device.writeback = isThrough && fault != .writebackWithoutFlush ? 0 : 1
    }
    if wanted.contains(.driverOK), !current.contains(.driverOK) {
      if !accepts() || accepted.contains(.version1) && !wanted.contains(.featuresOK)
        || device.face.isLegacy && fault == .legacyIsRefused || isDeclined(.refusesDriverOK)
      {
        wanted.remove(.driverOK)
      } else {
        device.lives += 1
        if !accepted.contains(.version1), fault == .diesWithoutVersion1 { device.isDead = true }
        let platform: [(FeatureSet, Fault)] = [
          (.accessPlatform, .lostWithoutAccessPlatform), (.orderPlatform, .lostWithoutOrderPlatform),
        ]
        for (feature, lost) in platform {
          if !accepted.contains(feature) { device.wasDeclined.formUnion(feature) }
          if accepted.contains(feature), device.wasDeclined.contains(feature), fault == lost { device.isDead = true }
        }
        if isDeclined(.needsReset) { fail() }
        device.wasLive = true
      }
    }
    current = wanted
    if isLive { for queue in queues { queue.isKicked = true } }
  }

  /// SUSPEND and resume. - Returns: whether the write was about that.
  private func suspends(_ status: DeviceStatus) -> Bool {
    if still != nil {
      if status.contains(.driverOK), fault != .neverResumes {
        still = nil
        current = current.subtracting(.suspend).union(.driverOK)
        for queue in queues { queue.isKicked = true }
      }
      return true
    }
    guard status.contains(.suspend), accepted.contains(.suspend), isLive || fault == .suspendsEarly else { return false }
    if isLive { for queue in queues { queue.drain() } }
    still = (device.configuration(current), device.generation)
    current = current.subtracting(.driverOK).union(.suspend)
    return true
  }

  /// Whether this driver declined the required feature, and the device answers like this.
  func isDeclined(_ answer: Insistence) -> Bool {
    guard let (feature, by) = device.insistence else { return false }
    return by == answer && !accepted.contains(feature)
  }

  private func accepts() -> Bool {
    device.negotiations += 1
    if isDeclined(.refusesFeatures) { return false }
    if fault == .refusesSecondTime, device.negotiations > 6 { return false }
    if fault == .refusesSome, !accepted.contains(BlockFeature.multiQueue) { return false }
    if device.zones != nil, !accepted.contains(BlockFeature.zoned), fault != .zonesCanBeDeclined { return false }
    return fault == .acceptsAnything || accepted.isSubset(of: device.offered)
  }

  func reset() { setStatus([]) }
  func offeredFeatures() -> FeatureSet { device.offered }
  func acceptFeatures(_ features: FeatureSet) {
    guard !current.contains(.featuresOK) || fault == .choiceIsNotFinal else { return }
    accepted = features
  }
  func queueCount() -> Int { ModelDevice.queueCount }
  func maximumQueueSize(_ queue: Int) -> UInt16 { queue < ModelDevice.queueCount ? 256 : 0 }

  var isLive: Bool { current.contains(.driverOK) && !isFailed }

  func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines] {
    queues = []
    for (index, configuration) in configurations.enumerated() {
      do { queues.append(try ModelQueue(index, configuration, self)) } catch { throw .refused("no eventfd: \(error)") }
    }
    return queues.map { .eventCounters(kick: $0.kick, call: $0.call) }
  }

  func resetQueue(_ queue: Int) {
    if fault != .servesResetQueue { queues[queue].isReset = true }
  }

  func enableQueue(_ index: Int, _ configuration: QueueConfiguration) {
    queues[index].restart(configuration, keepsPosition: fault == .resetQueueKeepsPosition)
  }

  func deleteQueues() { queues = [] }
  func waitForConfigurationChange(milliseconds: Int) -> Bool {
    guard still == nil else { return false }
    defer { seenChanges = device.changes }
    return seenChanges != device.changes
  }
  func waitForFailure(queue: Int, milliseconds: Int) -> Bool { status().contains(.needsReset) }

  func fail() {
    guard !isFailed else { return }
    isFailed = true
    if fault == .staysBroken { device.isDead = true }
    if fault != .failsWithoutNotice { device.changes += 1 }
  }

  func step() {
    for queue in leftOver {
      if fault == .callsAfterReset { EventCounter.signal(queue.call.rawValue) } else { queue.work() }
    }
    for queue in queues {
      let kicks = EventCounter.drain(queue.kick.rawValue)
      if kicks > 0 { queue.isKicked = true }
      if kicks >= 40, fault == .diesOfManyKicks { device.isDead = true }
      guard !queue.isReset, !device.isDead else { continue }
      if fault == .callsBeforeDriverOK, queue.isKicked, !isLive { EventCounter.signal(queue.call.rawValue) }
      if still != nil, fault == .usesSuspended || fault == .callsSuspended { queue.finishLate() }
      guard isLive || fault == .servesBeforeDriverOK || fault == .servesSuspended && still != nil else { continue }
      if fault == .diesAfterSomeLives, device.lives > 3 { continue }
      if fault == .secondQueueIsDead, queue.index == 1 { continue }
      if fault == .servesNothing || isDeclined(.saysNothing) { continue }
      queue.finishLate()
      if queue.isKicked { queue.work() }
    }
  }
}
