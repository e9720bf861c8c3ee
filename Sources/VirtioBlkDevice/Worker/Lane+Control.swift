/// What happens to a lane from outside: stopping, new sinks, loss of memory and of the medium.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Pops nothing more. Requests that a previous run left in flight are completed, too, unless they wait for a translation, or
  /// in order behind one that failed: those stay in the record, for the next start of the queue.
  mutating func drain() {
    if !parked.isEmpty { giveUpParked() }
    if state == .recovering { stopsAfterRecovery = true } else { state = .draining }
  }

  /// Releases a lane that was held; the turn that follows polls the ring.
  mutating func release() {
    guard state == .held else { return }
    state = ring.interrupted > 0 ? .recovering : .running
  }

  mutating func replaceCall(_ call: CallSink) {
    self.call = call
    // Answers may have been published after the old one was no longer watched.
    call.signal()
  }

  /// Whether all of the queue's memory is still there. If it is not, the queue stops.
  @inline(never)
  mutating func isMemoryThere() -> Bool {
    // The count is read first, so that what happens in the meantime is noticed next time.
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
    // Without the record it is no longer known what is in flight.
    guard inflight?.hasFaulted != true else {
      fail(.inflightLost)
      return false
    }
    seenFaults = faults
    plainFaults = log == nil && !looksAtOthers ? faults : .max
    return true
  }

  /// Publishes after a check of the memory, and logs what was written.
  @inline(never)
  mutating func publishWithCare() {
    guard isMemoryThere() else { return }
    let count = ring.unpublished
    let (begin, calls) = trace.map { ($0.writer.now, counters.value(.calls)) } ?? (0, 0)
    ring.publish()
    if !zoneAnswers.isEmpty { forgetZoneAnswers() }
    logRing()
    tell(count)
    if trace != nil { notePublished(count, from: begin, calls: calls) }
  }

  /// Answers on a ring that publishes at once, after a check of the memory: an answer to a request that was read from lost
  /// memory is never shown.
  @inline(never)
  mutating func pushWithCare(_ chain: consuming Chain, written: UInt32, isWhole: Bool) {
    guard isMemoryThere() else { return chain.abandon() }
    if isInOrder {
      ring.pushInOrder(chain, written: written, isWhole: isWhole)
    } else {
      ring.push(chain, written: written)
    }
    KillPoint.pass(.answerPushed)
    publishWithCare()
  }

  /// Publishes for the last time, when a lane is stopped: a call that was held back is due now.
  mutating func publishLast() {
    coalescing = nil
    publish()
  }

  /// When a call that is held back is due; `Clock` nanoseconds.
  var callDeadline: UInt64? { coalescing?.deadline }

  /// Whether a write may begin: its header and data came from the driver, and the file has not been truncated below its end.
  @inline(never)
  mutating func mayWrite<Engine: BlockEngine & ~Copyable>(before end: UInt64, _ medium: inout Medium<Engine>) -> Bool {
    guard isMemoryThere(), medium.holds(end: end) else { return false }
    if medium.isWhole { writesAreClear = seenFaults }
    return true
  }

  /// The medium is lost with everything that is in flight. All requests fail, unless there is an in-flight record: then they
  /// stay recorded, for a device that has a medium.
  ///
  /// - Returns: whether there is anything for a turn to report.
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
