/// One device goes and another comes, and the driver notices nothing but a pause: both ends of a takeover.
internal import Glibc
public import Sockets
internal import VirtioCore
internal import VirtioRegisters

/// The end that serves and is to be replaced. Until `handOver` everything can be taken back with `resume`.
extension MemoryFileDevice {
  /// Stops every queue and answers the mailbox no more; what the driver asked for before is answered first. The driver does not
  /// find the device gone: role and state stay. What it rings and asks for in the meantime waits for the successor. A
  /// device that its driver has suspended (`isSuspended`) can be paused, but no successor can hold it.
  ///
  /// - Parameter whenPaused: called once on the loop's thread when all queues have stopped and the file holds all that a
  ///   successor needs, which may be at once; never after `resume` or `close`.
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

  /// Continues serving where it stood: the takeover came to nothing. Of a device that is not being handed over nothing changes.
  public func resume() {
    guard phase == .pausing || phase == .paused else { return }
    whenPaused = nil
    phase = .resuming
    // What the driver asked for is still being executed: no queue was stopped yet.
    guard whenCarriedOut == nil else {
      phase = .serving
      return
    }
    advance()
  }

  /// Queues to be started where this device, or its successor, continues: all that ran, also where others have failed.
  var queuesToGoOn: [(queue: Int, configuration: QueueConfiguration)] {
    (stoppedForHandOver ?? []).filter { !failedQueues.contains($0.queue) }
  }

  func startAgain() {
    phase = .serving
    carryOut(queuesToGoOn.map { .startQueue($0.queue, $0.configuration) }) { self.lookAgain() }
  }

  /// The successor may begin: whatever becomes of this process, the device's role on the file stays.
  public func leaveRole() {
    precondition(phase == .paused, "a device is paused before it is handed over")
    ownsRole = false
  }

  /// The successor that may have begun is gone: continues from what is in the file, as after its death. Of a device whose role
  /// was not left, or that has been closed in the meantime, nothing changes.
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

  /// Ends without leaving: the successor holds its queues and continues at once. The device's role stays with the open file
  /// description, of which the successor has a descriptor. Of a device that was told to close in the meantime nothing changes:
  /// its role was left before.
  public func handOver() {
    guard phase == .paused else { return }
    phase = .over
    ownsRole = false
    unregister()
  }
}

/// The end that takes over: nothing that the driver can see happens before `release`.
extension MemoryFileDevice {
  /// Does what is slow while the predecessor still serves: threads and engines of the queues that its driver has made ready.
  ///
  /// - Parameters:
  ///   - offer: the predecessor's.
  ///   - whenPrepared: called once on the loop's thread, with the reason when it cannot take over: only `close` may follow
  ///     then.
  ///     Never after `close`.
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

  /// Does what can fail still: takes the registers' state as its own and starts the queues, held. Its predecessor has paused
  /// before.
  ///
  /// - Parameters:
  ///   - running: queues that run although the device needs a reset, because another one has failed.
  ///   - whenHeld: called once on the loop's thread, with the reason when it cannot take over: this device is over then,
  ///     and has changed nothing. Never after `close`.
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
    attended.unprepare()
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
    for queue in attended.busyQueues {
      device.release(queue: queue)
      callHeldBack(queue)
    }
    // A queue that broke while it was held, and what nobody was told.
    if case .queueNotTakenOver(_, let queue, let error) = holdFailure { fail(queue, error) }
    if owesConfigurationChange || registers.status.contains(.needsReset), registers.isInUse {
      notifyConfigurationChange()
    }
    owesConfigurationChange = false
    // For queues that were ready when that was requested, and are not now.
    attended.unprepare()
    lookAgain()
  }
}
