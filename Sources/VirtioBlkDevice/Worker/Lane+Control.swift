/// What happens to a lane from outside of its requests: its end, other sinks, memory and media that go away.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Nothing more is taken. What was interrupted before is in flight, too, and is finished, unless that waits for a translation: then
  /// it stays in the record, for whoever starts the queue next.
  mutating func drain() {
    if !parked.isEmpty { giveUpParked() }
    if state == .recovering { stopsAfterRecovery = true } else { state = .draining }
  }

  /// What was held may begin; the turn that follows looks at the ring.
  mutating func release() {
    guard state == .held else { return }
    state = ring.interrupted > 0 ? .recovering : .running
  }

  mutating func replaceCall(_ call: CallSink) {
    self.call = call
    // Something may have been published while the old one was no longer listened to.
    call.signal()
  }

  /// Whether all of the queue's memory is still the driver's. A queue with memory that is not stops.
  @inline(never)
  mutating func isMemoryThere() -> Bool {
    // Counted first, so that what happens in the meantime is looked at next time.
    let faults = context.faults.loadAfterLoads()
    guard faults != seenFaults else { return true }
    guard !memory.hasFaulted else {
      fail(.memoryLost)
      return false
    }
    guard log?.hasFaulted != true else {
      fail(.logLost)
      return false
    }
    // What is in flight can no longer be told from what is not.
    guard inflight?.hasFaulted != true else {
      fail(.inflightLost)
      return false
    }
    seenFaults = faults
    plainFaults = log == nil && !looksAtOthers ? faults : .max
    return true
  }

  /// Whether a write may begin: its header and data are the driver's, and the file has not been cut before its end.
  @inline(never)
  mutating func mayWrite<Engine: BlockEngine & ~Copyable>(before end: UInt64, _ medium: inout Medium<Engine>) -> Bool {
    guard isMemoryThere(), medium.holds(end: end) else { return false }
    if medium.isWhole { writesAreClear = seenFaults }
    return true
  }

  /// The medium is lost with everything that is under way. All of it failed, unless it is written down as in flight: then it
  /// stays so, for a device that has a medium.
  ///
  /// - Returns: whether that changed anything that a turn has to tell.
  mutating func abandonRequests() -> Bool {
    let (before, wasTold) = (slab.inUse, state == .failed || state == .draining)
    abandonZoneRequests()
    for index in 0..<slab.begun where unsafe slab.slot(index).pointee.stage != .none {
      if Ring.isRecorded {
        slab.takeChain(at: index).abandon()
        slab.give(index)
      } else if unsafe !slab.slot(index).pointee.isFinished {
        fail(index)
      }
    }
    parked.removeAll()
    forgetThrottled()
    fail(.mediumLost)
    return slab.inUse != before || !wasTold
  }

  mutating func replaceFailure(_ failure: CallSink) { self.failure = failure }

  @inline(never)
  mutating func fail(_ error: QueueError) {
    guard state != .failed, state != .draining else { return }
    if case .untranslated(let miss) = error { return wait(for: miss) }
    state = .failed
    self.error = error
    failure.signal()
  }

  /// The error of a lane that failed, once.
  mutating func takeError() -> QueueError? {
    let taken = error
    error = nil
    return taken
  }
}
