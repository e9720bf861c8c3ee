/// The driver's reads and writes. Whatever a driver does here, nothing traps: what makes no sense reads zero and writes
/// nothing.
internal import VirtioCore

extension MMIORegisters {
  /// A read of `width` bytes (virtio 4.2.2.2). Control registers answer aligned 32-bit reads, the configuration space reads
  /// of any offset and of 1, 2, 4 or 8 bytes; everything else, write-only registers included, is zero.
  public func read(offset: UInt32, width: Int) -> UInt64 {
    if offset >= Self.configurationOffset {
      guard Self.configurationWidths.contains(width) else { return 0 }
      let bytes = face.readConfiguration(Int(offset - Self.configurationOffset), width)
      return bytes.prefix(width).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    guard width == 4, let register = Register(rawValue: offset) else { return 0 }
    return UInt64(read(register))
  }

  private func read(_ register: Register) -> UInt32 {
    switch register {
    case .magicValue: Self.magic
    case .version: 2
    case .deviceID: face.deviceID
    case .vendorID: face.vendorID
    case .deviceFeatures: negotiation.offeredWord(deviceFeaturesSelect)
    case .queueSizeMaximum: selectedQueue == nil ? 0 : UInt32(face.maximumQueueSize)
    case .queueReady: selectedQueue.map { queues[$0].ready ? 1 : 0 } ?? 0
    case .queueReset: selectedQueue.map { queues[$0].resetting ? 1 : 0 } ?? 0
    case .interruptStatus: face.interruptStatus() & Self.interruptBits
    case .status: UInt32(status.rawValue)
    // A region that does not exist has length and base all ones (virtio 4.2.2).
    case .sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh: 0xffff_ffff
    case .configurationGeneration: face.configurationGeneration()
    case .deviceFeaturesSelect, .driverFeatures, .driverFeaturesSelect, .queueSelect, .queueSize, .queueNotify,
      .interruptAcknowledge, .queueDescriptorLow, .queueDescriptorHigh, .queueDriverLow, .queueDriverHigh,
      .queueDeviceLow, .queueDeviceHigh, .sharedMemorySelect:
      0
    }
  }

  /// A write of the low `width` bytes of `value`. Control registers take aligned 32-bit writes, the configuration space
  /// writes of any offset and of 1, 2, 4 or 8 bytes; everything else has no effect.
  public mutating func write(offset: UInt32, width: Int, value: UInt64) -> [Effect] {
    if offset >= Self.configurationOffset {
      guard Self.configurationWidths.contains(width) else { return [] }
      let bytes = (0..<width).map { UInt8(truncatingIfNeeded: value >> (UInt64($0) * 8)) }
      return [.configWrite(offset: Int(offset - Self.configurationOffset), bytes: bytes)]
    }
    guard width == 4, let register = Register(rawValue: offset) else { return [] }
    return write(register, UInt32(truncatingIfNeeded: value))
  }

  private mutating func write(_ register: Register, _ value: UInt32) -> [Effect] {
    switch register {
    case .deviceFeaturesSelect: deviceFeaturesSelect = value
    case .driverFeaturesSelect: driverFeaturesSelect = value
    case .driverFeatures: negotiation.acceptWord(driverFeaturesSelect, value)
    case .queueSelect: queueSelect = value
    case .queueSize: setQueueSize(value)
    case .queueDescriptorLow: setAddress(\.descriptorTable, low: value)
    case .queueDescriptorHigh: setAddress(\.descriptorTable, high: value)
    case .queueDriverLow: setAddress(\.availableRing, low: value)
    case .queueDriverHigh: setAddress(\.availableRing, high: value)
    case .queueDeviceLow: setAddress(\.usedRing, low: value)
    case .queueDeviceHigh: setAddress(\.usedRing, high: value)
    case .queueReady: return setQueueReady(value != 0)
    case .queueReset: return value == 1 ? resetQueue() : []
    case .queueNotify: return notify(value)
    case .interruptAcknowledge:
      let bits = value & Self.interruptBits
      return bits == 0 ? [] : [.acknowledgeInterrupt(bits)]
    case .status: return writeStatus(value)
    // No shared memory region exists, so there is nothing to select.
    case .sharedMemorySelect: break
    case .magicValue, .version, .deviceID, .vendorID, .deviceFeatures, .queueSizeMaximum, .interruptStatus,
      .sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh,
      .configurationGeneration:
      break
    }
    return []
  }

  private static let configurationWidths: Set<Int> = [1, 2, 4, 8]

  // MARK: Status

  private mutating func writeStatus(_ value: UInt32) -> [Effect] {
    // The field has eight bits. DRIVER_OK without FEATURES_OK is the way of legacy drivers only, and these do not speak
    // version 2: it does not stick (virtio 3.1.1).
    var bits = DeviceStatus(rawValue: UInt8(truncatingIfNeeded: value))
    if value != 0, bits.isEmpty { return [] }
    if !bits.union(status).contains(.featuresOK) { bits.remove(.driverOK) }
    if value != 0, bits.isEmpty { return [] }
    let accepts = face.accepts
    var effects: [Effect] = []
    for effect in negotiation.writeStatus(bits.rawValue, deviceAccepts: { $0.contains(.version1) && accepts($0) }) {
      switch effect {
      case .reset:
        self = MMIORegisters(face: face)
        effects.append(.reset)
      case .featuresFixed(let features): effects.append(.featuresFixed(features))
      case .live:
        effects.append(.live)
        guard isLive else { continue }
        for (queue, configuration) in readyQueues { effects.append(.startQueue(queue, configuration)) }
      }
    }
    return effects
  }

  // MARK: Queues

  /// The index behind QueueSel, `nil` when there is no such queue.
  private var selectedQueue: Int? { queueSelect < UInt32(queues.count) ? Int(queueSelect) : nil }

  /// The queue whose parameters may be changed now: selected, not ready, not being reset (virtio 4.2.2.2).
  private var changeableQueue: Int? {
    guard let queue = selectedQueue, !queues[queue].ready, !queues[queue].resetting else { return nil }
    return queue
  }

  private mutating func setQueueSize(_ value: UInt32) {
    guard let queue = changeableQueue, value > 0, value <= UInt32(face.maximumQueueSize) else { return }
    // A packed queue can have any size (virtio 2.7), a split one only a power of two (virtio 2.6).
    guard features.contains(.packedRing) || value & (value - 1) == 0 else { return }
    queues[queue].configuration.size = UInt16(value)
  }

  private mutating func setAddress(
    _ part: WritableKeyPath<QueueConfiguration, GuestAddress>, low: UInt32? = nil, high: UInt32? = nil
  ) {
    guard let queue = changeableQueue else { return }
    var address = queues[queue].configuration[keyPath: part].rawValue
    if let low { address = address & ~0xffff_ffff | UInt64(low) }
    if let high { address = address & 0xffff_ffff | UInt64(high) << 32 }
    queues[queue].configuration[keyPath: part] = GuestAddress(address)
  }

  /// A queue may be made ready at any time before or after DRIVER_OK; it is served when both have happened.
  private mutating func setQueueReady(_ ready: Bool) -> [Effect] {
    guard let queue = selectedQueue, !queues[queue].resetting, queues[queue].ready != ready else { return [] }
    queues[queue].ready = ready
    guard status.contains(.driverOK) else { return [] }
    if ready { return isLive ? [.startQueue(queue, queues[queue].configuration)] : [] }
    return [.stopQueue(queue)]
  }

  private mutating func resetQueue() -> [Effect] {
    guard
      status.contains(.featuresOK), features.contains(.ringReset), let queue = selectedQueue, queues[queue].ready,
      !queues[queue].resetting
    else { return [] }
    queues[queue].resetting = true
    return [.resetQueue(queue)]
  }

  /// The value is the queue's index, or with NOTIFICATION_DATA has it in its low 16 bits (virtio 4.2.3.3).
  private func notify(_ value: UInt32) -> [Effect] {
    let index = features.contains(.notificationData) ? value & 0xffff : value
    guard isLive, index < UInt32(queues.count), queues[Int(index)].ready, !queues[Int(index)].resetting else { return [] }
    return [.notify(Int(index))]
  }
}
