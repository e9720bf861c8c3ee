/// virtio-pci (virtio 4.1): how each field is accessed, directly or through the window in the configuration space.
internal import VirtioCore
internal import VirtioRegisters

struct PCIRules: BusRules {
  /// The fields of the common configuration structure by their offsets, with their bytes (virtio 4.1.4.3).
  private static let fields: [Int: Int] = [
    0x00: 4, 0x04: 4, 0x08: 4, 0x0c: 4, 0x10: 2, 0x12: 2, 0x14: 1, 0x15: 1, 0x16: 2, 0x18: 2, 0x1a: 2, 0x1c: 2, 0x1e: 2,
    0x20: 4, 0x24: 4, 0x28: 4, 0x2c: 4, 0x30: 4, 0x34: 4, 0x38: 2, 0x3a: 2,
  ]
  private static let readOnly: Set<Int> = [0x04, 0x12, 0x15, 0x1e, 0x38]
  private static let noVector: UInt32 = 0xffff

  private let map: PCIFunctionMap
  private let hasLegacy: Bool
  private var isMSIXEnabled = false
  /// The window as the driver has set it: bar, offset, length.
  private var window: (bar: UInt8, offset: UInt32, length: UInt32) = (0, 0, 0)
  /// Vectors that were mapped and not read back: of a queue, or of the configuration (`nil`).
  private var unread: Set<UInt32?> = []

  init(_ registers: RegisterModel) {
    hasLegacy = registers.interface.hasLegacy
    map = PCIFunctionMap(registers)
  }

  mutating func reset() { unread = [] }

  mutating func events(_ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    let (space, offset) = (access.offset >> 28, access.offset & 0x0fff_ffff)
    switch space {
    case 0: return configurationSpace(offset, access, rules)
    case 1...6: return bar(Int(space) - 1, offset, access, rules)
    default: return []
    }
  }

  private mutating func bar(
    _ bar: Int, _ offset: UInt32, _ access: RegisterAccess, _ rules: RegisterRules
  ) -> [RegisterEvent] {
    guard let region = map.region(bar, offset, access.width) else {
      // The legacy block is the only other thing in I/O space, and BAR 0 is where it has to be (virtio 4.1.4.8).
      return bar == 0 && hasLegacy ? legacy(offset, access, rules) : []
    }
    rules.isLegacy = false
    let place = Int(offset - region.offset)
    switch region.kind {
    case .common: return common(place, access, rules)
    case .notify: return notify(UInt32(place), access, rules)
    case .isr:
      if !access.isWrite { readISR(rules) }
      return [.interruptStatusRead(UInt32(truncatingIfNeeded: access.value))]
    case .device:
      rules.check(
        "d.pci.layout.1", ConfigurationFields.fits(place, access.width), "configuration byte \(place)",
        "\(access.width) bytes there are not a field")
      return [
        access.isWrite
          ? .configurationWrite(offset: place, width: access.width) : .configurationRead(offset: place, width: access.width)
      ]
    case .window: return []
    }
  }

  private func readISR(_ rules: RegisterRules) {
    rules.check("d.pci.isr.1", !isMSIXEnabled, "ISR", "it was read while MSI-X is enabled")
  }

  // MARK: Common configuration

  private mutating func common(_ place: Int, _ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    let name = "common configuration byte \(place)"
    let value = UInt32(truncatingIfNeeded: access.value)
    guard
      rules.check(
        "d.pci.layout.1", Self.fields[place] == access.width, name, "\(access.width) bytes there are not a field")
    else { return [] }
    guard access.isWrite else { return [readEvent(place, value, rules)] }
    guard rules.check("d.pci.common.1", !Self.readOnly.contains(place), name, "it can only be read, and was written") else {
      return []
    }
    return [writeEvent(place, value, rules)]
  }

  private mutating func readEvent(_ place: Int, _ value: UInt32, _ rules: RegisterRules) -> RegisterEvent {
    switch place {
    case 0x04: return .deviceFeaturesRead(value)
    case 0x10:
      if unread.remove(nil) != nil { rules.findings.kept("d.pci.msix.5") }
      return .other
    case 0x1a:
      if unread.remove(rules.selected) != nil { rules.findings.kept("d.pci.msix.5") }
      return .other
    case 0x14:
      if value == 0 { rules.findings.kept("d.pci.common.5") }
      return .statusRead(UInt8(truncatingIfNeeded: value))
    case 0x15: return .generationRead
    case 0x18: return .queueSizeRead(value)
    case 0x1c: return .queueReadyRead(value)
    case 0x3a:
      if value == 0, rules.queue.isResetting { rules.findings.kept("d.pci.common.7") }
      return .queueResetRead(value)
    default: return .other
    }
  }

  private mutating func writeEvent(_ place: Int, _ value: UInt32, _ rules: RegisterRules) -> RegisterEvent {
    switch place {
    case 0x00: return .deviceFeaturesSelect(value)
    case 0x08: return .driverFeaturesSelect(value)
    case 0x0c: return .driverFeaturesWrite(value)
    case 0x10, 0x1a:
      let source: UInt32? = place == 0x10 ? nil : rules.selected
      mapVector(value, source, rules)
      return .other
    case 0x14:
      if value & 4 != 0 { checkVectors(rules) }
      return .statusWrite(UInt8(truncatingIfNeeded: value))
    case 0x16: return .queueSelect(value)
    case 0x18:
      checkSize(value, rules)
      return .queueSizeWrite(value)
    case 0x1c:
      rules.check("d.pci.common.6", value != 0, "queue \(rules.selected)", "0 was written to queue_enable")
      return value == 0 ? .other : .queueReadyWrite(value)
    case 0x20, 0x24: return .queueAddressWrite(.descriptors)
    case 0x28, 0x2c: return .queueAddressWrite(.driver)
    case 0x30, 0x34: return .queueAddressWrite(.device)
    case 0x3a: return .queueResetWrite(value)
    default: return .other
    }
  }

  private func checkSize(_ value: UInt32, _ rules: RegisterRules) {
    let name = "queue \(rules.selected)"
    if rules.accepted.contains(.packedRing) {
      rules.check("d.pci.common.2", value != 0, name, "0 was written to queue_size")
    } else {
      rules.check("d.pci.common.3", value != 0 && value & (value - 1) == 0, name, "\(value) was written to queue_size")
    }
  }

  // MARK: Vectors

  private mutating func mapVector(_ value: UInt32, _ source: UInt32?, _ rules: RegisterRules) {
    let name = source.map { "the vector of queue \($0)" } ?? "the configuration's vector"
    rules.check(
      "d.pci.msix.4", value == Self.noVector || value < UInt32(map.vectors), name,
      "vector \(value) was requested, and there are \(map.vectors)")
    if value != Self.noVector, source == nil || rules.hasSelected { unread.insert(source) }
  }

  private mutating func checkVectors(_ rules: RegisterRules) {
    for source in unread {
      let name = source.map { "the vector of queue \($0)" } ?? "the configuration's vector"
      rules.broken("d.pci.msix.5", name, "it was not read back before DRIVER_OK")
    }
    unread = []
  }

  // MARK: Notifications

  private func notify(_ place: UInt32, _ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    guard access.isWrite, map.notifyMultiplier > 0 else { return [] }
    let queue = place / map.notifyMultiplier
    let value = UInt32(truncatingIfNeeded: access.value)
    let name = "the notification of queue \(queue)"
    let hasData = rules.accepted.contains(.notificationData)
    let hasConfiguration = rules.accepted.contains(FeatureSet(bit: 39))
    if hasData {
      rules.check("d.pci.kick.2", access.width == 4, name, "it was \(access.width) bytes wide")
    } else {
      rules.check("d.pci.kick.1", access.width == 2, name, "it was \(access.width) bytes wide")
    }
    // What this function has in queue_notif_config_data is the queue's index.
    let rule =
      switch (hasData, hasConfiguration) {
      case (false, false): "d.pci.kick.3"
      case (true, false): "d.pci.kick.4"
      case (false, true): "d.pci.kick.5"
      case (true, true): "d.pci.kick.6"
      }
    rules.check(rule, value & 0xffff == queue, name, "its value was 0x\(String(value, radix: 16))")
    return [.notify(queue: queue, value: value, width: access.width)]
  }

  // MARK: Configuration space

  private mutating func configurationSpace(
    _ offset: UInt32, _ access: RegisterAccess, _ rules: RegisterRules
  ) -> [RegisterEvent] {
    let touched = offset..<offset &+ UInt32(clamping: access.width)
    if access.isWrite {
      let isOurs = map.capabilities.contains { $0.overlaps(touched) }
      rules.check(
        "d.pci.cap.8", !isOurs, "configuration space byte \(offset)", "a field of a capability was written")
      if let msix = map.msix, touched.contains(msix + 3) {
        isMSIXEnabled = access.value >> (8 * UInt64(msix + 3 - offset)) & 0x80 != 0
      }
    }
    guard let start = map.window else { return [] }
    for byte in 0..<UInt32(clamping: access.width) where access.isWrite {
      let value = UInt32(truncatingIfNeeded: access.value >> (8 * UInt64(byte))) & 0xff
      setWindow(offset + byte - min(start, offset + byte), value, isInside: offset + byte >= start)
    }
    guard touched.overlaps(start + 16..<start + 20) else { return [] }
    return useWindow(access, rules)
  }

  private mutating func setWindow(_ place: UInt32, _ value: UInt32, isInside: Bool) {
    guard isInside else { return }
    func merged(_ word: UInt32, _ byte: UInt32) -> UInt32 { word & ~(0xff << (8 * byte)) | value << (8 * byte) }
    switch place {
    case 4: window.bar = UInt8(value)
    case 8..<12: window.offset = merged(window.offset, place - 8)
    case 12..<16: window.length = merged(window.length, place - 12)
    default: break
    }
  }

  private mutating func useWindow(_ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    let (bar, offset, length) = (Int(window.bar), window.offset, window.length)
    let name = "the window: BAR \(bar), offset 0x\(String(offset, radix: 16)), length \(length)"
    let isAligned = [1, 2, 4].contains(length) && offset % length == 0
    rules.check("d.pci.cfgacc.1", isAligned, name, "the offset is not a multiple of the length, or the length is not 1, 2 or 4")
    rules.check("d.pci.cfgacc.2", isAligned, name, "the access is not aligned")
    guard isAligned else { return [] }
    let isInside = map.region(bar, offset, Int(length)) != nil
    guard rules.check("d.pci.cfgacc.3", isInside, name, "it is outside the device's structures") else { return [] }
    var inner = access
    inner.width = Int(length)
    inner.value = access.value & (1 << (8 * UInt64(length)) - 1)
    return self.bar(bar, offset, inner, rules)
  }

  // MARK: Legacy

  private func legacy(_ offset: UInt32, _ access: RegisterAccess, _ rules: RegisterRules) -> [RegisterEvent] {
    rules.isLegacy = true
    let value = UInt32(truncatingIfNeeded: access.value)
    let first: UInt32 = isMSIXEnabled ? 0x18 : 0x14
    guard offset < first else {
      let place = Int(offset - first)
      return [
        access.isWrite
          ? .configurationWrite(offset: place, width: access.width) : .configurationRead(offset: place, width: access.width)
      ]
    }
    switch (offset, access.isWrite) {
    case (0x00, false): return [.deviceFeaturesRead(value)]
    case (0x04, true): return [.driverFeaturesWrite(value)]
    case (0x08, true): return [.queuePageWrite(value)]
    case (0x0c, false): return [.queueSizeRead(value)]
    case (0x0e, true): return [.queueSelect(value)]
    case (0x10, true): return [.notify(queue: nil, value: value, width: access.width)]
    case (0x12, true): return [.statusWrite(UInt8(truncatingIfNeeded: value))]
    case (0x12, false): return [.statusRead(UInt8(truncatingIfNeeded: value))]
    default: return [.other]
    }
  }

  // MARK: BusRules

  func resetUnread(_ value: UInt8, _ rules: RegisterRules) {
    guard !rules.isLegacy else { return }
    rules.broken("d.pci.common.5", "the status", "the driver continued before it had read that the reset was complete")
  }

  func resetQueueUnread(_ rules: RegisterRules) {
    rules.broken("d.pci.common.7", "queue \(rules.selected)", "it was set up again before queue_reset was read as 0")
  }

  func queueWritten(_ what: String, _ rules: RegisterRules) {
    guard !rules.isLegacy else { return }
    rules.check("d.pci.common.4", !rules.queue.isReady, "queue \(rules.selected)", "\(what) was written after queue_enable")
  }

  func readySet(isWhole: Bool, _ rules: RegisterRules) {
    rules.check(
      "d.pci.common.4", isWhole, "queue \(rules.selected)", "queue_enable was written before every address was")
  }
}
