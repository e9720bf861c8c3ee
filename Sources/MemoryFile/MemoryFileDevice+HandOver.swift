/// Both ends of a takeover: one device is replaced by another, and the driver notices only a pause.
internal import Glibc
public import Sockets
internal import VirtioCore
internal import VirtioRegisters

/// The device that serves and is to be replaced. Until `handOver` everything can be undone with `resume`.
extension MemoryFileDevice {
  /// Stops every queue, answers the driver's current request, and then no more of the mailbox. To the driver the device is
  /// still there: role and state stay. Its kicks and requests in the meantime wait for the successor. A device that its driver
  /// has suspended (`isSuspended`) can be paused, but no successor can hold it.
  ///
  /// - Parameter whenPaused: called once on the loop's thread when all queues have stopped and the file contains all that a
  ///   successor needs, which may be immediately; never after `resume` or `close`.
  public func pauseForHandOver(then whenPaused: @escaping () -> Void) {
    precondition(phase == .serving, "only a device that serves can be handed over")
    phase = .pausing
    stoppedForHandOver = nil
    self.whenPaused = whenPaused
    advance()
  }

  func paused() {
    phase = .paused
    storeState()
    let paused = whenPaused
    whenPaused = nil
    paused?()
  }

  /// Continues serving after a takeover that was cancelled. Has no effect on a device that is not being handed over.
  public func resume() {
    guard phase == .pausing || phase == .paused else { return }
    whenPaused = nil
    phase = .resuming
    // The driver's last request is still being executed: no queue was stopped yet.
    guard whenCarriedOut == nil else {
      phase = .serving
      return
    }
    advance()
  }

  /// Queues to start when this device, or its successor, continues: all that ran, even if others have failed.
  var queuesToGoOn: [(queue: Int, configuration: QueueConfiguration)] {
    (stoppedForHandOver ?? []).filter { !failedQueues.contains($0.queue) }
  }

  func startAgain() {
    phase = .serving
    carryOut(queuesToGoOn.map { .startQueue($0.queue, $0.configuration) }) { self.lookAgain() }
  }

  /// The successor may begin: from now on the device's role on the file outlives this process.
  public func leaveRole() {
    precondition(phase == .paused, "a device is paused before it is handed over")
    ownsRole = false
  }

  /// The successor that may have begun is gone: continues from the state in the file, as after a crash. Has no effect if
  /// `leaveRole` was not called, or if the device has been closed in the meantime.
  public func resumeFromFile() {
    guard phase == .paused, !ownsRole else { return }
    ownsRole = true
    phase = .serving
    device.reset()
    attach()
    if owesConfigurationChange, registers.isInUse { notifyConfigurationChange() }
    owesConfigurationChange = false
    lookAgain()
  }

  /// Ends without giving up the role: the successor holds its queues and continues at once. The role stays with the open file
  /// description, of which the successor has a descriptor. Has no effect on a device that was closed in the meantime: it has
  /// given up its role before.
  public func handOver() {
    guard phase == .paused else { return }
    phase = .over
    ownsRole = false
    unregister()
  }
}

/// The device that takes over: nothing that the driver can see happens before `release`.
extension MemoryFileDevice {
  /// Does the slow part while the predecessor still serves: starts threads and engines for the queues that its driver has made
  /// ready.
  ///
  /// - Parameters:
  ///   - offer: the predecessor's offer.
  ///   - whenPrepared: called once on the loop's thread, with the reason if it cannot take over, after which only `close` may
  ///     follow. Never called after `close`.
  public func prepare(
    for offer: Offer, in loop: EventLoop, then whenPrepared: @escaping (MemoryFileError?) -> Void
  ) throws(MemoryFileError) {
    precondition(phase == .new && !ownsRole, "only a device that takes over is prepared")
    let recorded = RegisterModel.restore(file.control.loadState(), file.layout.interface, face: face).registers
    try check(offer, recorded.features)
    try register(in: loop)
    phase = .preparing
    self.whenPrepared = whenPrepared
    attended.prepare(
      recorded.readyQueues.map(\.queue), memory: file.memory, isRecorded: false,
      isPacked: recorded.features.contains(.packedRing))
  }

  func prepared(_ error: MemoryFileError?) {
    let prepared = whenPrepared
    whenPrepared = nil
    prepared?(error)
  }

  /// Does everything that can still fail: adopts the state of the registers and starts the queues, held. The predecessor must
  /// have paused before.
  ///
  /// - Parameters:
  ///   - running: queues that run although the device needs a reset, because another one has failed.
  ///   - whenHeld: called once on the loop's thread, with the reason if it cannot take over: this device has then ended, and
  ///     has changed nothing. Never called after `close`.
  public func hold(
    in loop: EventLoop, running: [Int] = [], then whenHeld: @escaping (MemoryFileError?) -> Void
  ) throws(MemoryFileError) {
    precondition((phase == .new || phase == .preparing) && !ownsRole, "only a device that takes over is held")
    if phase == .new { try register(in: loop) }
    phase = .holding
    self.whenHeld = whenHeld
    answered = file.control.responseSequence.loadAcquire()
    let (restored, effects, restoration) = restoreRegisters()
    registers = restored
    guard restoration == .complete else {
      holdFailure = restoration == .suspended ? .suspended(path: file.path) : .driverNotTakenOver(path: file.path)
      return advance()
    }
    var steps = effects
    if registers.isInUse, registers.status.contains(.needsReset) {
      steps += registers.readyQueues.filter { running.contains($0.queue) }.map { .startQueue($0.queue, $0.configuration) }
    }
    carryOut(steps) {
      // After a failure the queues that did start are stopped first, see `advance`.
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
    attended.unprepare()
    unregister()
    let (failed, reason) = (whenHeld, holdFailure)
    whenHeld = nil
    failed?(reason)
  }

  /// The predecessor has released the file: from now on this device serves.
  public func release() {
    precondition(phase == .held, "a device is held before it is released")
    phase = .serving
    ownsRole = true
    file.control.deviceProcess.storeRelaxed(UInt32(getpid()))
    announce()
    for queue in attended.busyQueues {
      device.release(queue: queue)
      callHeldBack(queue)
    }
    // Reports a queue that broke while it was held, and changes that the driver was not notified of.
    if case .queueNotTakenOver(_, let queue, let error) = holdFailure { fail(queue, error) }
    if owesConfigurationChange || registers.status.contains(.needsReset), registers.isInUse {
      notifyConfigurationChange()
    }
    owesConfigurationChange = false
    // For queues that were prepared because they were ready then, and no longer are.
    attended.unprepare()
    lookAgain()
  }
}
