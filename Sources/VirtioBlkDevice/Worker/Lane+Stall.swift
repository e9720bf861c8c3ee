/// Requests that the medium failed. The driver gets the error; or, with `--on-error stop`, the operator can repair the medium
/// first, as with a VMM's werror=stop: the request keeps its slot, nothing more is popped, and what is in flight is completed.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// The medium has failed an operation of a request.
  @inline(never)
  mutating func completeFailed<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    // Part of it may have been read.
    if log != nil, unsafe slab.slot(index).pointee.stage == .watchedTransfer { logTransfer(index) }
    guard !park(index) else { return }
    switch unsafe slab.slot(index).pointee.stage {
    case .transfer, .watchedTransfer:
      counters.add(.mediumFailures)
      countFailure(.ioError)
      // A write to the medium changes nothing in the driver's memory.
      let isRead = unsafe slab.slot(index).pointee.written > 1
      answer(index, .ioError, written: isRead ? Int(medium.filled(tag(index))) : 1)
    case .flush, .discard, .zero, .erase: fail(index)
    case .zoneWrite, .zoneFlush, .zoneWait, .zoneRecord: completeZoned(index, isDone: false, &medium)
    case .none: preconditionFailure("a request was answered twice")
    }
  }

  /// Keeps a request that the medium failed. - Returns: false if it has to be answered as failed.
  @inline(never)
  mutating func park(_ index: Int) -> Bool {
    guard let news = context.stalls else { return false }
    // A queue that is stopping does not wait for the operator, but it may have a successor.
    if state == .draining || stopsAfterRecovery { return leaveToSuccessor(index) }
    // A broken queue has to come to an end.
    guard state == .running || state == .recovering || state == .stalled || state == .waiting else { return false }
    // The driver is taking its memory back, and does not wait for the operator.
    guard !isWithdrawing else { return false }
    if state != .stalled {
      stateBeforeStall = state
      state = .stalled
      news.post(
        .notice(
          "queue \(queue) stalls, because its image failed a request: repair it, and send SIGUSR1 to retry the request"))
    }
    parked.append(index)
    return true
  }

  /// The operator pauses the disk: nothing more is popped, and what is in flight is completed.
  mutating func pause() {
    guard state == .running || state == .recovering || state == .waiting else { return }
    stateBeforeStall = state
    state = .stalled
  }

  /// It stalls, or is about to stop, and the remaining requests wait for the operator, or for a limit.
  var isAtRest: Bool {
    let waiting = parked.count + throttled.count
    return slab.inUse == 0 || slab.inUse == waiting + (waiting > 0 ? unansweredBehindOthers : 0)
  }

  /// Answers that are not published because, in order, they come after a request that failed or waits.
  private var unansweredBehindOthers: Int {
    guard isOrdered else { return 0 }
    var finished = 0
    for index in 0..<slab.begun where unsafe slab.slot(index).pointee.stage != .none && slab.slot(index).pointee.isFinished {
      finished += 1
    }
    return finished
  }

  /// The operator resumes the disk.
  mutating func tryParked<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) {
    guard state == .stalled else { return }
    state = stateBeforeStall
    let waiting = parked
    parked.removeAll()
    // Each may fail at once, and then the queue stalls again.
    for index in waiting { tryAgain(index, &medium) }
  }

  private mutating func tryAgain<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    let slot = unsafe slab.slot(index)
    switch unsafe slot.pointee.stage {
    case .transfer, .watchedTransfer:
      switch medium.transferAgain(tag(index)) {
      case .pending: break
      case .done: complete(index, isDone: true, &medium)
      case .failed: complete(index, isDone: false, &medium)
      }
    case .flush: flush(index, &medium)
    case .discard, .zero, .erase:
      // From the first range on: executing one twice changes nothing.
      unsafe slot.pointee.rangeIndex = 0
      askNextRange(index, &medium)
    case .zoneWrite, .zoneFlush, .zoneWait, .zoneRecord: preconditionFailure("a zoned disk does not wait for the operator")
    case .none: preconditionFailure("a request that was answered waits for the operator")
    }
  }

  /// The queue stops. Its next run executes these requests again if it can know about them; otherwise they have to be answered
  /// as failed.
  mutating func giveUpParked() {
    if state == .stalled { state = stateBeforeStall }
    let waiting = parked
    parked.removeAll()
    for index in waiting where !leaveToSuccessor(index) { fail(index) }
  }

  /// Leaves a request unanswered. With an in-flight record it stays recorded; if answers come in the order of the requests, it
  /// and all later ones are handed back in the end.
  /// - Returns: false if neither is the case.
  private mutating func leaveToSuccessor(_ index: Int) -> Bool {
    if isOrdered {
      parked.append(index)
      // Nothing after it can be answered, so what has not been popped again stays in the record: it would need slots that never
      // become free.
      if state == .recovering { state = .draining }
      return true
    }
    guard Ring.isRecorded else { return false }
    slab.takeChain(at: index).abandon()
    slab.give(index)
    return true
  }

  /// All remaining requests failed, or wait behind one that failed: nothing more will happen to them.
  var holdsOnlyBack: Bool {
    guard isOrdered, state == .draining, !parked.isEmpty else { return false }
    return slab.inUse == parked.count + unansweredBehindOthers
  }

  /// The lane ends. Requests that were never published as used count as not popped: in the order of the requests, that is
  /// everything from the first failed one on, including those that were executed. Executing them again changes nothing, because
  /// the driver is still waiting for them.
  mutating func handBack() {
    guard !parked.isEmpty else { return }
    parked.removeAll()
    for index in 0..<slab.begun where unsafe slab.slot(index).pointee.stage != .none {
      slab.takeChain(at: index).abandon()
      slab.give(index)
      // An in-flight record already says what is in flight.
      if !Ring.isRecorded { handedBack &+= 1 }
    }
  }
}
