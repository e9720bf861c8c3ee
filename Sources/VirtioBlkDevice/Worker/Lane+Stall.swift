/// What happens to a request that the medium failed. It is reported to its driver; or, for an operator who wants to fix what is wrong
/// before that, nobody is, as with VMMs' werror=stop: the request keeps its slot, nothing more is taken, and what is under way
/// is finished.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// The medium has not done what a request asked it for.
  @inline(never)
  mutating func completeFailed<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    // A part of it may have been read.
    if log != nil, unsafe slab.slot(index).pointee.stage == .watchedTransfer { logTransfer(index) }
    guard !park(index) else { return }
    switch unsafe slab.slot(index).pointee.stage {
    case .transfer, .watchedTransfer:
      counters.add(.mediumFailures)
      countFailure(.ioError)
      // What was written to the medium is none of the driver's memory.
      let isRead = unsafe slab.slot(index).pointee.written > 1
      answer(index, .ioError, written: isRead ? Int(medium.filled(tag(index))) : 1)
    case .flush, .discard, .zero, .erase: fail(index)
    case .zoneWrite, .zoneFlush, .zoneWait, .zoneRecord: completeZoned(index, isDone: false, &medium)
    case .none: preconditionFailure("a request was answered twice")
    }
  }

  /// The medium failed a request. - Returns: false when its driver has to be notified.
  @inline(never)
  mutating func park(_ index: Int) -> Bool {
    guard let news = context.stalls else { return false }
    // A queue that stops has no operator to wait for, but perhaps a successor.
    if state == .draining || stopsAfterRecovery { return leaveToSuccessor(index) }
    // One that is broken has to come to its end.
    guard state == .running || state == .recovering || state == .stalled || state == .waiting else { return false }
    // Its driver takes its memory back, and waits for no operator.
    guard !isWithdrawing else { return false }
    if state != .stalled {
      stateBeforeStall = state
      state = .stalled
      news.post(
        .notice(
          "queue \(queue) stalls, because its image failed a request: mend what is wrong with the image and send SIGUSR1, and the "
            + "request is tried again"))
    }
    parked.append(index)
    return true
  }

  /// The operator wants that nothing more is taken. What is under way is finished.
  mutating func pause() {
    guard state == .running || state == .recovering || state == .waiting else { return }
    stateBeforeStall = state
    state = .stalled
  }

  /// It stalls, or is about to stop, and what is still here waits for somebody outside, or for a limit.
  var isAtRest: Bool {
    let waiting = parked.count + throttled.count
    return slab.inUse == 0 || slab.inUse == waiting + (waiting > 0 ? unansweredBehindOthers : 0)
  }

  /// Answered after something that failed or waits, and so not shown yet, where answers come in order.
  private var unansweredBehindOthers: Int {
    guard isOrdered else { return 0 }
    var finished = 0
    for index in 0..<slab.begun where unsafe slab.slot(index).pointee.stage != .none && slab.slot(index).pointee.isFinished {
      finished += 1
    }
    return finished
  }

  /// The operator says that it may continue.
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
      // From the first range on: doing one twice changes nothing.
      unsafe slot.pointee.rangeIndex = 0
      askNextRange(index, &medium)
    case .zoneWrite, .zoneFlush, .zoneWait, .zoneRecord: preconditionFailure("a zoned disk waits for no operator")
    case .none: preconditionFailure("a request that was answered waits for the operator")
    }
  }

  /// The queue stops. Whoever starts it next takes these requests again, where that one can know of them; elsewhere they can
  /// only be told as failed.
  mutating func giveUpParked() {
    if state == .stalled { state = stateBeforeStall }
    let waiting = parked
    parked.removeAll()
    for index in waiting where !leaveToSuccessor(index) { fail(index) }
  }

  /// Leaves a request unanswered. Where it is written down what is in flight, it stays so; where answers come in the order of
  /// the requests, it and all that come after it are handed back in the end.
  /// - Returns: false where neither is so.
  private mutating func leaveToSuccessor(_ index: Int) -> Bool {
    if isOrdered {
      parked.append(index)
      return true
    }
    guard Ring.isRecorded else { return false }
    slab.takeChain(at: index).abandon()
    slab.give(index)
    return true
  }

  /// What is still here failed, or was answered after something that failed: nothing more will happen to it.
  var holdsOnlyBack: Bool {
    guard isOrdered, state == .draining, !parked.isEmpty else { return false }
    return slab.inUse == parked.count + unansweredBehindOthers
  }

  /// The lane is over. What was never shown as used is as if it had not been taken: in the order of the requests that is all
  /// from the first one that failed on, also what was executed. Doing that again changes nothing, as its driver waits for it.
  mutating func handBack() {
    guard !parked.isEmpty else { return }
    parked.removeAll()
    while !order.isEmpty {
      let index = order.first
      dequeueInOrder()
      slab.takeChain(at: index).abandon()
      slab.give(index)
      // A record says by itself what is in flight.
      if !Ring.isRecorded { handedBack &+= 1 }
    }
  }
}
