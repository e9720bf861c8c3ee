/// virtio-mmio (virtio 4.2): how each register is accessed.
internal import VirtioRegisters

struct MMIORules: BusRules {
  private typealias Register = MMIORegisters.Register
  private static let readOnly: Set<Register> = [
    .magicValue, .version, .deviceID, .vendorID, .deviceFeatures, .queueSizeMaximum, .interruptStatus, .sharedMemoryLengthLow,
    .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh, .configurationGeneration,
  ]
  private static let writeOnly: Set<Register> = [
    .deviceFeaturesSelect, .driverFeatures, .driverFeaturesSelect, .queueSelect, .queueSize, .queueNotify,
    .interruptAcknowledge, .queueDescriptorLow, .queueDescriptorHigh, .queueDriverLow, .queueDriverHigh, .queueDeviceLow,
    .queueDeviceHigh, .sharedMemorySelect,
  ]
  private static let sharedMemory: Set<Register> = [
    .sharedMemorySelect, .sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh,
  ]

  /// Registers that a new driver still has to read first, in this order.
  private var first: [Register]
  private var statusWasRead = false
  private var unacknowledged: UInt32 = 0

  init(isNew: Bool) { first = isNew ? [.magicValue, .version, .deviceID] : [] }

  mutating func reset() { (statusWasRead, unacknowledged) = (false, 0) }

  mutating func events(_ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    let place = "register 0x\(String(access.offset, radix: 16))"
    checkFirst(access, rules)
    guard access.offset < MMIORegisters.configurationOffset else { return configuration(access, place, rules) }
    guard
      rules.check(
        "d.mmio.4", access.width == 4 && access.offset % 4 == 0, place,
        "it was accessed with \(access.width) bytes")
    else { return [] }
    let register = Register(rawValue: access.offset)
    rules.check("d.mmio.1", register != nil, place, "there is no such register")
    guard let register else { return [] }
    rules.check("d.mmio.init.6", !Self.sharedMemory.contains(register), place, "a block device has no shared memory")
    if access.isWrite {
      guard rules.check("d.mmio.2", !Self.readOnly.contains(register), place, "it can only be read, and was written") else {
        return []
      }
    } else {
      guard rules.check("d.mmio.3", !Self.writeOnly.contains(register), place, "it can only be written, and was read") else {
        return []
      }
    }
    let event = Self.event(register, access)
    judge(event, place, rules)
    checkReadBack(event, rules)
    return [event]
  }

  private mutating func checkFirst(_ access: RegisterAccess, _ rules: RegisterRules) {
    guard let wanted = first.first else { return }
    let isIt = access.offset == wanted.rawValue && !access.isWrite
    let rule = wanted == .deviceID ? "d.mmio.init.2" : "d.mmio.init.1"
    rules.check(
      rule, isIt, "register 0x\(String(access.offset, radix: 16))",
      "a new driver \(access.isWrite ? "wrote" : "read") it before it had read register 0x\(String(wanted.rawValue, radix: 16))"
    )
    if isIt { first.removeFirst() } else { first = [] }
  }

  private func configuration(_ access: RegisterAccess, _ place: String, _ rules: RegisterRules) -> [RegisterEvent] {
    let offset = Int(access.offset - MMIORegisters.configurationOffset)
    rules.check(
      "d.mmio.5", ConfigurationFields.fits(offset, access.width), place,
      "\(access.width) bytes at configuration byte \(offset) are not a field")
    return [
      access.isWrite
        ? .configurationWrite(offset: offset, width: access.width) : .configurationRead(offset: offset, width: access.width)
    ]
  }

  private static func event(_ register: Register, _ access: RegisterAccess) -> RegisterEvent {
    let value = UInt32(truncatingIfNeeded: access.value)
    return switch register {
    case .deviceFeatures: .deviceFeaturesRead(value)
    case .deviceFeaturesSelect: .deviceFeaturesSelect(value)
    case .driverFeatures: .driverFeaturesWrite(value)
    case .driverFeaturesSelect: .driverFeaturesSelect(value)
    case .queueSelect: .queueSelect(value)
    case .queueSizeMaximum: .queueSizeRead(value)
    case .queueSize: .queueSizeWrite(value)
    case .queueReady: access.isWrite ? .queueReadyWrite(value) : .queueReadyRead(value)
    case .queueNotify: .notify(queue: nil, value: value, width: access.width)
    case .interruptStatus: .interruptStatusRead(value)
    case .interruptAcknowledge: .interruptAcknowledge(value)
    case .status:
      access.isWrite ? .statusWrite(UInt8(truncatingIfNeeded: value)) : .statusRead(UInt8(truncatingIfNeeded: value))
    case .queueDescriptorLow, .queueDescriptorHigh: .queueAddressWrite(.descriptors)
    case .queueDriverLow, .queueDriverHigh: .queueAddressWrite(.driver)
    case .queueDeviceLow, .queueDeviceHigh: .queueAddressWrite(.device)
    case .queueReset: access.isWrite ? .queueResetWrite(value) : .queueResetRead(value)
    case .configurationGeneration: .generationRead
    case .magicValue, .version, .deviceID, .vendorID, .sharedMemorySelect, .sharedMemoryLengthLow, .sharedMemoryLengthHigh,
      .sharedMemoryBaseLow, .sharedMemoryBaseHigh:
      .other
    }
  }

  private mutating func judge(_ event: RegisterEvent, _ place: String, _ rules: RegisterRules) {
    switch event {
    case .queueSizeRead(let value): rules.queue.maximum = value
    case .queueSizeWrite(let value):
      guard let maximum = rules.queue.maximum else { return }
      rules.check("d.mmio.14", value <= maximum, place, "QueueNum is \(value), and QueueNumMax \(maximum)")
    case .interruptStatusRead(let bits):
      // The driver may read again before it acknowledges.
      (statusWasRead, unacknowledged) = (true, unacknowledged | bits)
    case .interruptAcknowledge(let bits):
      rules.check("d.mmio.20", bits & ~3 == 0, place, "0x\(String(bits, radix: 16)) was acknowledged")
      rules.check("d.mmio.intr.1", statusWasRead, place, "events were acknowledged, and InterruptStatus was not read")
      // It may acknowledge one event at a time.
      let rest = unacknowledged & ~bits
      (statusWasRead, unacknowledged) = (statusWasRead && rest != 0, rest)
    default: break
    }
  }

  /// After writing 0 to QueueReady, a driver has to read it back before anything else.
  private func checkReadBack(_ event: RegisterEvent, _ rules: RegisterRules) {
    guard rules.queue.owesReadBack else { return }
    switch event {
    case .queueReadyRead: rules.findings.kept("d.mmio.17")
    case .queueSizeWrite, .queueAddressWrite, .queueReadyWrite, .queueSelect, .statusWrite:
      rules.queue.owesReadBack = false
      rules.broken("d.mmio.17", "queue \(rules.selected)", "0 was written to QueueReady and not read back")
    default: break
    }
  }

  // MARK: BusRules

  func featuresRead(hasSelected: Bool, _ rules: RegisterRules) {
    rules.check("d.mmio.12", hasSelected, "DeviceFeatures", "it was read before DeviceFeaturesSel was written")
  }

  func featuresWritten(hasSelected: Bool, _ rules: RegisterRules) {
    rules.check("d.mmio.13", hasSelected, "DriverFeatures", "it was written before DriverFeaturesSel was")
  }

  func resetQueueUnread(_ rules: RegisterRules) {
    rules.broken("d.mmio.21", "queue \(rules.selected)", "it was set up again before QueueReset was read as 0")
  }

  func queueWritten(_ what: String, _ rules: RegisterRules) {
    rules.check("d.mmio.15", !rules.queue.isReady, "queue \(rules.selected)", "\(what) was written while it is ready")
    if rules.queue.wasReset { rules.findings.kept("d.mmio.21") }
  }
}

/// virtio-mmio version 1 (virtio 4.2.4): only the common rules of the legacy interface apply.
struct LegacyMMIORules: BusRules {
  private var featureWord: UInt32 = 0

  mutating func reset() { featureWord = 0 }

  mutating func events(_ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    rules.isLegacy = true
    let value = UInt32(truncatingIfNeeded: access.value)
    guard access.offset < MMIORegisters.configurationOffset else {
      let offset = Int(access.offset - MMIORegisters.configurationOffset)
      return [
        access.isWrite
          ? .configurationWrite(offset: offset, width: access.width) : .configurationRead(offset: offset, width: access.width)
      ]
    }
    guard let register = LegacyMMIORegisters.Register(rawValue: access.offset) else { return [.other] }
    switch (register, access.isWrite) {
    case (.hostFeatures, false): return [.deviceFeaturesRead(value)]
    case (.guestFeaturesSelect, true):
      featureWord = value
      return [.other]
    // There is no other feature word; a driver for both versions writes 0 to the next one.
    case (.guestFeatures, true): return featureWord == 0 ? [.driverFeaturesWrite(value)] : [.other]
    case (.queueSelect, true): return [.queueSelect(value)]
    case (.queueSizeMaximum, false): return [.queueSizeRead(value)]
    case (.queuePageNumber, true): return [.queuePageWrite(value)]
    case (.queueNotify, true): return [.notify(queue: nil, value: value, width: access.width)]
    case (.status, true): return [.statusWrite(UInt8(truncatingIfNeeded: value))]
    case (.status, false): return [.statusRead(UInt8(truncatingIfNeeded: value))]
    default: return [.other]
    }
  }
}

/// Where the fields of a block device's configuration are (virtio 5.2.4).
enum ConfigurationFields {
  /// The width in bytes of the field at each offset; a field of 64 bits counts as two of 32.
  private static let all: [Int: Int] = [
    0: 4, 4: 4, 8: 4, 12: 4, 16: 2, 18: 1, 19: 1, 20: 4, 24: 1, 25: 1, 26: 2, 28: 4, 32: 1, 33: 1, 34: 2, 36: 4, 40: 4, 44: 4,
    48: 4, 52: 4, 56: 1, 57: 1, 58: 1, 59: 1, 60: 4, 64: 4, 68: 4, 72: 4, 76: 4, 80: 4, 84: 4, 88: 4, 92: 1, 93: 1, 94: 1,
    95: 1,
  ]

  /// Whether an access is to one whole field, with its width.
  static func fits(_ offset: Int, _ width: Int) -> Bool { all[offset] == width || all[offset] == nil && offset >= 96 }
}
