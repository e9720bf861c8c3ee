/// The queues behind a selector, through the modern interface and the legacy one.
internal import VirtioCore

extension DeviceRegisters {
  /// The index of the selected queue, `nil` if there is no such queue.
  var selectedQueue: Int? { queueSelect < UInt32(queues.count) ? Int(queueSelect) : nil }

  /// The selected queue, if its parameters may be changed now: it is not ready and not being reset.
  private var changeableQueue: Int? {
    guard let queue = selectedQueue, !queues[queue].ready, !queues[queue].resetting else { return nil }
    return queue
  }

  /// The largest ring size of the selected queue, 0 if there is none.
  var maximumSize: UInt32 { selectedQueue == nil ? 0 : UInt32(face.maximumQueueSize) }

  mutating func setQueueSize(_ value: UInt32) {
    guard let queue = changeableQueue, value > 0, value <= UInt32(face.maximumQueueSize) else { return }
    // A packed queue can have any size (virtio 2.7), a split one only a power of two (virtio 2.6).
    guard features.contains(.packedRing) || value & (value - 1) == 0 else { return }
    queues[queue].configuration.size = UInt16(value)
  }

  /// Each half of an address can be written separately, in any order (virtio 4.1.3.2).
  mutating func setAddress(
    _ part: WritableKeyPath<QueueConfiguration, GuestAddress>, low: UInt32? = nil, high: UInt32? = nil
  ) {
    guard let queue = changeableQueue else { return }
    var address = queues[queue].configuration[keyPath: part].rawValue
    if let low { address = address & ~0xffff_ffff | UInt64(low) }
    if let high { address = address & 0xffff_ffff | UInt64(high) << 32 }
    queues[queue].configuration[keyPath: part] = GuestAddress(address)
  }

  /// A queue may be made ready at any time before or after DRIVER_OK; it is served when both have happened.
  mutating func setQueueReady(_ ready: Bool) -> [Effect] {
    guard let queue = selectedQueue, !queues[queue].resetting, queues[queue].ready != ready else { return [] }
    queues[queue].ready = ready
    guard isInUse || suspension != nil else { return [] }
    if ready { return isLive ? [.startQueue(queue, queues[queue].configuration)] : [] }
    return [.stopQueue(queue)]
  }

  mutating func resetQueue() -> [Effect] {
    guard
      status.contains(.featuresOK), features.contains(.ringReset), let queue = selectedQueue, queues[queue].ready,
      !queues[queue].resetting
    else { return [] }
    queues[queue].resetting = true
    return [.resetQueue(queue)]
  }

  /// The owner has executed `resetQueue`: the queue is in the same state as after a reset of the device.
  mutating func queueResetFinished(_ queue: Int) {
    guard queues.indices.contains(queue), queues[queue].resetting else { return }
    queues[queue] = Queue(maximumSize: face.maximumQueueSize)
  }

  /// - Parameter value: the queue's index; with NOTIFICATION_DATA in its low 16 bits (virtio 4.2.3.3).
  mutating func notify(_ value: UInt32, isLegacy: Bool = false) -> [Effect] {
    let index = features.contains(.notificationData) ? value & 0xffff : value
    guard index < UInt32(queues.count), queues[Int(index)].ready, !queues[Int(index)].resetting else { return [] }
    var effects: [Effect] = []
    if isLegacy, isMaster, !isLive { effects = serveEarly() }
    guard isLive else { return [] }
    return effects + [.notify(Int(index))]
  }

  // MARK: Legacy

  /// QueueAlign (virtio 4.2.4). - Parameter value: bytes, a power of two; anything else is ignored.
  mutating func setAlignment(_ value: UInt32) {
    guard let queue = changeableQueue, value > 0, value & (value - 1) == 0 else { return }
    queues[queue].alignment = value
  }

  /// Where the region of the selected queue begins, in pages; 0 if it has none.
  ///
  /// - Parameter pageSize: bytes, a power of two, or 0 if it is not known.
  func pageNumber(pageSize: UInt32) -> UInt32 {
    guard pageSize > 0, let queue = selectedQueue, queues[queue].ready else { return 0 }
    return UInt32(truncatingIfNeeded: queues[queue].configuration.descriptorTable.rawValue / UInt64(pageSize))
  }

  /// The legacy way to set up a queue and to take it down (virtio 4.1.5.1.3.1, 4.2.4): the page number of its region, or 0.
  mutating func setPageNumber(_ number: UInt32, pageSize: UInt32) -> [Effect] {
    guard let queue = selectedQueue, !queues[queue].resetting else { return [] }
    guard number != 0 else {
      let effects = setQueueReady(false)
      let zero = GuestAddress(0)
      queues[queue].configuration = QueueConfiguration(
        size: queues[queue].configuration.size, descriptorTable: zero, availableRing: zero, usedRing: zero)
      return effects
    }
    // A 32-bit page number times a 32-bit page size fits into 64 bits.
    guard
      pageSize > 0, !queues[queue].ready,
      let configuration = QueueConfiguration.legacy(
        size: queues[queue].configuration.size, base: GuestAddress(UInt64(number) * UInt64(pageSize)),
        alignment: UInt64(queues[queue].alignment))
    else { return [] }
    queues[queue].configuration = configuration
    return setQueueReady(true)
  }
}
