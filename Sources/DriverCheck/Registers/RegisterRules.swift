/// The rules that hold on every bus, from accesses to registers (virtio 2.1, 2.2, 2.5, 3.1).
internal import Synchronization
internal import VirtioCore
public import VirtioRegisters

/// Watches the registers of one device, on the thread that owns them.
public final class RegisterRules: RegisterWatch {
  /// One queue as the driver has described it.
  struct Queue {
    var isReady = false
    /// The addresses written since the queue was new, or was reset.
    var written: Set<RegisterEvent.AddressPart> = []
    var hasSize = false
    /// The queue was disabled, and the driver has not read that back.
    var owesReadBack = false
    /// A reset was requested, and the driver has not read that it is complete.
    var isResetting = false
    var wasReset = false
    var sizeWasRead = false
    /// The maximum size that the driver read; `nil`: it did not.
    var maximum: UInt32?
  }

  let findings: DriverFindings
  /// Checks a queue's ring when it is notified.
  let look: (_ queue: Int, _ value: UInt32) -> Void
  private let isNew: Bool
  var bus: any BusRules
  var status: UInt8 = 0
  var offered = FeatureSet()
  var accepted = FeatureSet()
  var isLegacy = false
  var queues: [UInt32: Queue] = [:]
  var selected: UInt32 = 0

  private var deviceSelect: UInt32?
  private var driverSelect: UInt32?
  private var hasReset = false
  private var owesStatusRead = false
  private var hasReadFeatures = false
  private var owesFeaturesRead = false
  /// The state of a read of the capacity: whether the generation was read before it, and only configuration since.
  private var capacityRead: (hasGeneration: Bool, passes: Int)?
  private var lastWasGeneration = false
  private var suspension = Suspension.none

  /// How far the driver has got with suspending the device (virtio 3.4), according to what it has read.
  private enum Suspension { case none, requested, suspended, resuming }

  /// - Parameter isNew: no driver has used these registers before.
  init(_ findings: DriverFindings, isNew: Bool, look: @escaping (_ queue: Int, _ value: UInt32) -> Void) {
    self.findings = findings
    self.isNew = isNew
    self.look = look
    bus = NoBus()
  }

  public func begins(with registers: RegisterModel) {
    let image = registers.image
    suspension = image.status.contains(.suspend) ? .suspended : .none
    status = image.status.subtracting(.suspend).rawValue
    accepted = image.driverFeatures
    offered = registers.offered
    if status != 0, !accepted.contains(.version1) { findings.noteAnyLayout(accepted.contains(.anyLayout)) }
    // A driver may have probed and reset the device while another process served it.
    hasReset = status != 0 || !isNew
    hasReadFeatures = status & 8 != 0
    for (index, queue) in image.queues.enumerated() where queue.ready {
      queues[UInt32(index)] = Queue(
        isReady: true, written: Set(RegisterEvent.AddressPart.allCases), hasSize: true, sizeWasRead: true)
    }
    bus =
      switch registers.interface {
      case .mmio: MMIORules(isNew: isNew && status == 0)
      case .mmioLegacy: LegacyMMIORules()
      case .pci, .pciLegacy, .pciTransitional: PCIRules(registers)
      }
  }

  public func accessed(_ access: RegisterAccess) {
    for event in bus.events(access, self) {
      noteCapacity(event)
      judge(event)
    }
  }

  /// A driver can select any number; no device has more queues than this.
  var hasSelected: Bool { selected < 1024 }

  var queue: Queue {
    get { queues[selected] ?? Queue() }
    set { if hasSelected { queues[selected] = newValue } }
  }

  func broken(_ rule: String, _ place: String, _ words: String) {
    findings.broken(rule, queue: nil, place, words)
  }

  @discardableResult
  func check(_ rule: String, _ isKept: Bool, _ place: @autoclosure () -> String, _ words: @autoclosure () -> String) -> Bool {
    findings.judge(rule, isKept, place(), words())
  }

  // MARK: Each event

  private func judge(_ event: RegisterEvent) {
    switch event {
    // Other fields may be read between the generation and the capacity.
    case .configurationRead, .configurationWrite: break
    default: lastWasGeneration = event == .generationRead
    }
    if status & 0x80 != 0 { checkFailed(event) }
    switch event {
    case .deviceFeaturesSelect(let value): deviceSelect = value
    case .deviceFeaturesRead:
      bus.featuresRead(hasSelected: deviceSelect != nil, self)
      hasReadFeatures = true
      if !isLegacy {
        check("d.init.1", status & 3 == 3, "the device's features", "they were read before ACKNOWLEDGE and DRIVER were set")
      }
    case .driverFeaturesSelect(let value): driverSelect = value
    case .driverFeaturesWrite(let bits): writeFeatures(bits)
    case .statusRead(let value):
      owesFeaturesRead = false
      // The device clears FEATURES_OK if it cannot work with the choice.
      if value & 8 == 0 { status &= ~8 }
      if owesStatusRead { findings.kept("d.reset.1") }
      owesStatusRead = false
      noteSuspension(value)
    case .statusWrite(let value): writeStatus(value)
    case .queueSelect(let value): selected = value
    case .queueSizeRead: queue.sizeWasRead = true
    case .queueSizeWrite:
      setUp("the queue's size")
      queue.hasSize = true
    case .queueAddressWrite(let part):
      setUp("the queue's addresses")
      queue.written.insert(part)
    case .queueReadyRead: queue.owesReadBack = false
    case .queueReadyWrite(let value): writeReady(value)
    case .queueResetRead(let value):
      if value == 0, queue.isResetting {
        queue.isResetting = false
        queue.wasReset = true
        findings.kept("d.vqreset.1")
      }
    case .queueResetWrite(let value):
      guard value == 1 else { return }
      queue = Queue(isResetting: true)
    case .queuePageWrite(let page):
      guard page != 0 else { return }
      check("legacy.d.vq.1", queue.sizeWasRead, "queue \(selected)", "it was set up, and its size was not read")
    case .notify(let index, let value, _):
      if !isLegacy {
        check("d.init.7", status & 4 != 0 || suspension != .none, "the notification", "a kick came before DRIVER_OK")
      }
      checkSuspension("the notification", "d.suspend.4", "a kick came")
      look(Int(index ?? value & 0xffff), value)
    case .configurationRead(let offset, let width): readConfiguration(offset, width)
    case .configurationWrite(let offset, _):
      guard !isLegacy else { return }
      check("d.init.3", status & 8 != 0, "configuration byte \(offset)", "it was written before FEATURES_OK")
      checkSuspension("configuration byte \(offset)", "d.suspend.5", "it was written")
    case .interruptStatusRead, .interruptAcknowledge, .generationRead, .other: break
    }
  }

  private func checkFailed(_ event: RegisterEvent) {
    switch event {
    case .statusWrite(let value):
      check("d.status.3", value == 0, "the status", "0x\(String(value, radix: 16)) was written after FAILED, without a reset")
    case .queueSizeWrite, .queueAddressWrite, .queueReadyWrite, .queuePageWrite, .driverFeaturesWrite, .notify:
      broken("d.init.6", "the registers", "the driver continued after FAILED: \(event)")
    default: findings.kept("d.init.6")
    }
  }

  // MARK: Status

  private func writeStatus(_ value: UInt8) {
    // Another reset does not help.
    if owesStatusRead, value != 0 {
      bus.resetUnread(value, self)
      broken("d.reset.1", "the status", "0x\(String(value, radix: 16)) was written before the reset was read as complete")
      owesStatusRead = false
    }
    guard value != 0 else { return reset() }
    guard !writeSuspension(value) else { return }
    // NEEDS_RESET belongs to the device.
    check(
      "d.status.2", status & ~64 & ~value == 0, "the status",
      "0x\(String(value, radix: 16)) was written after 0x\(String(status, radix: 16)): bits were cleared without a reset")
    if isLegacy {
      check("legacy.d.init.1", value & 8 == 0, "the status", "FEATURES_OK was written by the legacy interface")
      status |= value & ~16
      return
    }
    checkOrder(value)
    if value & ~status & 8 != 0 { chooses() }
    // SUSPEND is cleared without a reset: `suspension` keeps track of it.
    status |= value & ~16
  }

  /// SUSPEND is written, or a suspended device is resumed. - Returns: whether the write was only about that.
  private func writeSuspension(_ value: UInt8) -> Bool {
    let hasFeature = accepted.contains(.suspend) && status & 8 != 0
    switch suspension {
    case .none, .resuming:
      check(
        "d.suspend.1", value & 16 == 0 || hasFeature && status & 4 != 0, "the status",
        hasFeature ? "SUSPEND was written before DRIVER_OK" : "SUSPEND was written, and was not accepted")
      guard value & 16 != 0, hasFeature, status & 4 != 0 else { return false }
      (suspension, status) = (.requested, status & ~4)
    case .requested, .suspended:
      guard value & 4 != 0 else { return false }
      check(
        "d.suspend.2", suspension == .suspended, "the status",
        "the device was resumed before the status was read as suspended")
      (suspension, status) = (.resuming, status | 4)
    }
    return true
  }

  private func noteSuspension(_ value: UInt8) {
    switch suspension {
    case .requested where value & 0x14 == 0x10: suspension = .suspended
    case .resuming where value & 0x14 == 4: suspension = .none
    default: break
    }
  }

  private func checkSuspension(_ place: String, _ rule: String, _ words: String) {
    guard accepted.contains(.suspend), status & 8 != 0 else { return }
    let isSuspended = suspension == .requested || suspension == .suspended
    check(rule, !isSuspended, place, "\(words) after SUSPEND was written")
    check("d.suspend.6", suspension != .resuming, place, "\(words) before the status was read as resumed")
  }

  private func reset() {
    (status, accepted, queues, selected) = (0, [], [:], 0)
    (deviceSelect, driverSelect) = (nil, nil)
    (hasReset, owesStatusRead, hasReadFeatures, owesFeaturesRead) = (true, true, false, false)
    suspension = .none
    bus.reset()
  }

  /// - Parameter value: what is written, not 0.
  private func checkOrder(_ value: UInt8) {
    let added = value & ~status
    let after = status | value
    let steps: [(bit: UInt8, name: String, needs: UInt8)] = [
      (2, "DRIVER", 1), (8, "FEATURES_OK", 3), (4, "DRIVER_OK", 11),
    ]
    for step in steps where added & step.bit != 0 && value & 0x80 == 0 {
      check(
        "d.status.1", after & step.needs == step.needs, "the status",
        "\(step.name) was set with 0x\(String(value, radix: 16)) after 0x\(String(status, radix: 16))")
    }
    var fault: String?
    if added & 1 != 0, !hasReset { fault = "ACKNOWLEDGE was set without a reset before" }
    if added & 8 != 0, !hasReadFeatures { fault = "FEATURES_OK was set, and the device's features were not read" }
    if added & 4 != 0, status & 8 == 0 { fault = "DRIVER_OK was set without FEATURES_OK before" }
    if added & 4 != 0, owesFeaturesRead { fault = "DRIVER_OK was set, and the status was not read after FEATURES_OK" }
    check("d.init.1", fault == nil, "the status", fault ?? "")
    if added & 8 != 0 { owesFeaturesRead = true }
  }

  // MARK: Features

  private func writeFeatures(_ bits: UInt32) {
    bus.featuresWritten(hasSelected: driverSelect != nil || isLegacy, self)
    let select = isLegacy ? 0 : driverSelect ?? 0
    if !isLegacy {
      check("d.init.4", status & 8 == 0, "the driver's features", "they were written after FEATURES_OK")
    }
    // There are no more words; a driver writes 0 there.
    guard select < 2 else {
      check("d.feat.1", bits == 0, "the driver's features", "bits of word \(select) were accepted, and none of them is offered")
      return
    }
    let shift = UInt64(select) * 32
    let word = FeatureSet(rawValue: UInt64(bits) << shift)
    let stray = word.subtracting(offered)
    check("d.feat.1", stray.isEmpty, "the driver's features", "\(stray) was accepted and is not offered")
    let foreign = word.subtracting(Self.known)
    check("d.feat.7", foreign.isEmpty, "the driver's features", "\(foreign) was accepted, which has no meaning here")
    accepted = FeatureSet(rawValue: accepted.rawValue & ~(0xffff_ffff << shift)).union(word)
    if isLegacy { choosesLegacy() }
  }

  /// Every bit that a specification up to 1.4 defines for a block device.
  private static let known: FeatureSet = {
    let bits = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17] + [24, 27, 28, 29] + Array(32...41) + [43]
    return FeatureSet(bits.map { FeatureSet(bit: $0) })
  }()

  private func choosesLegacy() {
    findings.noteAnyLayout(accepted.contains(.anyLayout))
    guard offered.contains(.anyLayout) else { return }
    check(
      "legacy.d.rfb.1", accepted.contains(.anyLayout), "the driver's features", "ANY_LAYOUT is offered and was not accepted")
  }

  /// FEATURES_OK is being set.
  private func chooses() {
    func wants(_ rule: String, _ feature: FeatureSet, _ name: String) {
      guard offered.contains(feature) else { return }
      check(rule, accepted.contains(feature), "the driver's features", "\(name) is offered and was not accepted")
    }
    wants("d.rfb.1", .version1, "VERSION_1")
    wants("d.rfb.3", .accessPlatform, "ACCESS_PLATFORM")
    wants("d.rfb.6", .packedRing, "RING_PACKED")
    wants("d.rfb.7", .orderPlatform, "ORDER_PLATFORM")
    wants("d.rfb.13", FeatureSet(bit: 39), "NOTIF_CONFIG_DATA")
    wants("d.blk.op.3", FeatureSet(bit: 5), "RO")
  }

  // MARK: Queues

  private func setUp(_ what: String) {
    if !isLegacy {
      check("d.init.1", status & 8 != 0, "queue \(selected)", "\(what) was written before FEATURES_OK")
    }
    checkResetRead()
    bus.queueWritten(what, self)
  }

  private func checkResetRead() {
    guard queue.isResetting else { return }
    queue.isResetting = false
    broken("d.vqreset.1", "queue \(selected)", "it was written to before its reset was read as complete")
    bus.resetQueueUnread(self)
  }

  private func writeReady(_ value: UInt32) {
    checkResetRead()
    guard value != 0 else {
      queue.isReady = false
      queue.owesReadBack = true
      bus.readyCleared(self)
      return
    }
    if !isLegacy { check("d.init.1", status & 8 != 0, "queue \(selected)", "it was made ready before FEATURES_OK") }
    let isWhole = queue.written.count == RegisterEvent.AddressPart.allCases.count
    bus.readySet(isWhole: isWhole, self)
    if queue.wasReset {
      check(
        "d.vqreset.3", isWhole && queue.hasSize, "queue \(selected)",
        "it was enabled again after its reset before all of it was written")
    }
    queue.isReady = true
  }

  // MARK: Configuration

  /// The fields that depend on a feature (virtio 5.2.4), by their offsets.
  private static let fields: [(range: Range<Int>, bit: Int, name: String)] = [
    (8..<12, 1, "size_max"), (12..<16, 2, "seg_max"), (16..<20, 4, "geometry"), (20..<24, 6, "blk_size"),
    (24..<32, 10, "topology"), (32..<33, 11, "writeback"), (34..<36, 12, "num_queues"), (36..<48, 13, "the discard fields"),
    (48..<57, 14, "the write zeroes fields"), (60..<72, 16, "the secure erase fields"), (72..<96, 17, "the zoned fields"),
  ]

  private func readConfiguration(_ offset: Int, _ width: Int) {
    let touched = offset..<offset + max(width, 1)
    let missing = Self.fields.first { $0.range.overlaps(touched) && !offered.contains(FeatureSet(bit: $0.bit)) }
    check(
      "d.cfg.3", missing == nil, "configuration byte \(offset)",
      "\(missing?.name ?? "") was read, and feature bit \(missing?.bit ?? 0) is not offered")
    guard !isLegacy, touched.contains(32) else { return }
    check("d.blk.init.4", status & 8 != 0, "configuration byte \(offset)", "writeback was read before FEATURES_OK")
  }

  /// The capacity is read in halves, between two reads of the generation (virtio 2.5.1); with the legacy interface until two
  /// passes agree.
  private func noteCapacity(_ event: RegisterEvent) {
    if case .configurationRead(let offset, _) = event, offset < 8 {
      var read = capacityRead ?? (lastWasGeneration, 0)
      if offset == 0 { read.passes += 1 }
      capacityRead = read
      return
    }
    guard let read = capacityRead else { return }
    if case .configurationRead = event { return }
    capacityRead = nil
    if isLegacy {
      check("legacy.d.cfg.1", read.passes > 1, "the capacity", "it was read only once")
    } else {
      check(
        "d.cfg.2", read.hasGeneration && event == .generationRead, "the capacity",
        "the generation was not read \(read.hasGeneration ? "after" : "before") it")
    }
  }
}

/// The rules of one kind of bus.
protocol BusRules {
  /// Judges an access by the rules of the bus.
  /// - Returns: what it means.
  mutating func events(_ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent]
  mutating func reset()
  func featuresRead(hasSelected: Bool, _ rules: RegisterRules)
  func featuresWritten(hasSelected: Bool, _ rules: RegisterRules)
  /// The status is written before the driver has read that a reset is complete.
  func resetUnread(_ value: UInt8, _ rules: RegisterRules)
  func resetQueueUnread(_ rules: RegisterRules)
  /// A queue's size or addresses are written.
  func queueWritten(_ what: String, _ rules: RegisterRules)
  func readyCleared(_ rules: RegisterRules)
  func readySet(isWhole: Bool, _ rules: RegisterRules)
}

extension BusRules {
  mutating func reset() {}
  func featuresRead(hasSelected: Bool, _ rules: RegisterRules) {}
  func featuresWritten(hasSelected: Bool, _ rules: RegisterRules) {}
  func resetUnread(_ value: UInt8, _ rules: RegisterRules) {}
  func resetQueueUnread(_ rules: RegisterRules) {}
  func queueWritten(_ what: String, _ rules: RegisterRules) {}
  func readyCleared(_ rules: RegisterRules) {}
  func readySet(isWhole: Bool, _ rules: RegisterRules) {}
}

/// Before the registers are known.
private struct NoBus: BusRules {
  mutating func events(_ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] { [] }
}
