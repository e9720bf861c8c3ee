/// How a driver's queue asks to be called, or not, and waits (virtio 2.6.7, 2.7.7).
internal import VirtioCore

extension DriverQueue {
  /// How late a call that is due may be before it counts as missing.
  public var callPatience: Duration {
    get { notifications.patience }
    set { notifications.patience = newValue }
  }

  /// Asks for no calls: the driver is going to poll (virtio 2.6.7.1, 2.7.7).
  public mutating func disableCalls() {
    switch raw {
    case .split(let ring): requestNoCalls(ring)
    case .packed(let ring): requestNoCalls(ring)
    }
    notifications.disarm(usedIndex: usedCount)
  }

  /// Asks for a call at the next used chain.
  ///
  /// - Returns: false when something was used in the meantime, for which no call may come: reap instead of waiting.
  public mutating func enableCalls() -> Bool { enableCalls(after: 0) }

  /// Asks for a call when `after` more chains than the next one are used; without EVENT_IDX there is only the next one.
  ///
  /// - Parameter after: chains; in a packed ring descriptors, which is the same if every chain has one.
  public mutating func enableCalls(after: UInt16) -> Bool {
    switch raw {
    case .split(let ring): requestCall(after: after, ring)
    case .packed(let ring): requestCall(after: after, ring)
    }
    // Enabling calls before the check for what is used already (2.6.14, 2.7.22).
    fullFence()
    guard !hasUsed else { return false }
    notifications.arm(at: reapedCount &+ (setup.eventIndex ? after : 0), usedIndex: reapedCount)
    return true
  }

  /// The device went away and is back (see `DriverTransport.recover`).
  ///
  /// - Parameter devices: how many devices were met in the meantime.
  public mutating func deviceReturned(_ devices: Int) { notifications.deviceReturned(devices) }

  /// Counts the calls that have arrived, and checks that one has if the driver waits for it and it is due.
  public mutating func noteCalls() throws(DriverFault) {
    try notifications.noteCalls(queue: setup.index, usedIndex: usedCount)
  }

  /// Waits for a used chain, asleep on the call line.
  ///
  /// - Returns: whether there is something to reap.
  public mutating func waitForUsed(milliseconds: Int) throws(DriverFault) -> Bool {
    let end = ContinuousClock.now + .milliseconds(milliseconds)
    guard enableCalls() else { return true }
    while !hasUsed {
      let left = (end - ContinuousClock.now).milliseconds
      guard left > 0 else { return false }
      notifications.call.wait(milliseconds: left)
      try noteCalls()
    }
    try noteCalls()
    return true
  }

  /// Waits for a call, whatever was used. - Returns: whether one came.
  public mutating func waitForCall(milliseconds: Int) throws(DriverFault) -> Bool {
    let before = notifications.calls
    let end = ContinuousClock.now + .milliseconds(milliseconds)
    while true {
      try noteCalls()
      if notifications.calls > before { return true }
      let left = (end - ContinuousClock.now).milliseconds
      guard left > 0 else { return false }
      notifications.call.wait(milliseconds: left)
    }
  }

  /// The fault to report when nothing came back for `milliseconds`.
  public func noAnswer(milliseconds: Int) -> DriverFault {
    .noAnswer(
      queue: setup.index, outstanding: outstanding, milliseconds: milliseconds, lastKick: notifications.lastKick)
  }
}

extension Duration {
  /// Whole milliseconds, rounded up.
  var milliseconds: Int {
    let (seconds, attoseconds) = components
    return Int(seconds * 1000) + Int((attoseconds + 999_999_999_999_999) / 1_000_000_000_000_000)
  }
}
