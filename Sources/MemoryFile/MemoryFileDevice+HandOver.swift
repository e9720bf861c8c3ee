/// One device goes and another comes, and the driver notices nothing but a pause: both ends of a takeover.
internal import Glibc
public import Sockets
internal import VirtioCore
internal import VirtioRegisters

/// The end that serves and is to be replaced. Until `handOver` everything can be taken back with `resume`.
extension MemoryFileDevice {
  /// Stops every queue and answers the mailbox no more; what the driver asked for before is answered first. The driver does not
  /// find the device gone: role and state stay. What it rings and asks for meanwhile waits for whoever goes on.
  ///
  /// - Parameter whenPaused: called once on the loop's thread when all queues have stopped and the file holds all that a
  ///   successor needs, which may be at once; never after `resume` or `close`.
  public func pauseForHandOver(then whenPaused: @escaping () -> Void) {
    precondition(phase == .serving, "only a device that serves can be handed over")
    phase = .pausing
    self.whenPaused = whenPaused
    advance()
  }

  func paused() {
    phase = .paused
    file.control.storeState(registers.image)
    let paused = whenPaused
    whenPaused = nil
    paused?()
  }

  /// Goes on serving where it stood: the takeover came to nothing. In need of a reset it starts no queue, as its successor
  /// would not have. Of a device that is not being handed over nothing changes.
  public func resume() {
    guard phase == .pausing || phase == .paused else { return }
    whenPaused = nil
    phase = .resuming
    // What the driver asked for is still being carried out: no queue was stopped yet.
    guard whenCarriedOut == nil else {
      phase = .serving
      return
    }
    advance()
  }

  func startAgain() {
    phase = .serving
    let queues = registers.isLive ? registers.readyQueues : []
    carryOut(queues.map { .startQueue($0.queue, $0.configuration) }) { self.lookAgain() }
  }

  /// Ends without leaving: the successor holds its queues and goes on at once. The device's role stays with the open file
  /// description, of which the successor has a descriptor.
  public func handOver() {
    precondition(phase == .paused, "a device is paused before it is handed over")
    phase = .over
    ownsRole = false
    unregister()
  }
}

/// The end that takes over: nothing that the driver can see happens before `release`.
extension MemoryFileDevice {
  /// Does everything that can fail: takes the registers' state as its own and starts the queues, held. Its predecessor has
  /// paused before.
  ///
  /// - Parameter whenHeld: called once on the loop's thread, with the reason when it cannot take over: this device is over then,
  ///   and has changed nothing. Never after `close`.
  public func hold(in loop: EventLoop, then whenHeld: @escaping (MemoryFileError?) -> Void) throws(MemoryFileError) {
    precondition(phase == .new && !ownsRole, "only a device that takes over is held")
    try register(in: loop)
    phase = .holding
    self.whenHeld = whenHeld
    answered = file.control.responseSequence.loadAcquire()
    let (restored, effects, restoration) = MMIORegisters.restore(file.control.loadState(), face: face)
    registers = restored
    guard restoration == .complete else {
      holdFailure = .driverNotTakenOver(path: file.path)
      return advance()
    }
    carryOut(effects) {
      // Otherwise the queues that did start are stopped first, see `advance`.
      guard self.holdFailure == nil else { return }
      self.phase = .held
      let held = self.whenHeld
      self.whenHeld = nil
      held?(nil)
    }
    advance()
  }

  func holdFailed() {
    phase = .over
    unregister()
    let (failed, reason) = (whenHeld, holdFailure)
    whenHeld = nil
    failed?(reason)
  }

  /// The predecessor is over with the file: from now on this device serves.
  public func release() {
    precondition(phase == .held, "a device is held before it is released")
    phase = .serving
    ownsRole = true
    file.control.deviceProcess.storeRelaxed(UInt32(getpid()))
    announce()
    for queue in attended.busyQueues { device.release(queue: queue) }
    // A queue that broke while it was held, and what nobody was told.
    if case .queueNotTakenOver(_, let queue, let error) = holdFailure { fail(queue, error) }
    if owesConfigurationChange || registers.status.contains(.needsReset), registers.status.contains(.driverOK) {
      notifyConfigurationChange()
    }
    owesConfigurationChange = false
    lookAgain()
  }
}
