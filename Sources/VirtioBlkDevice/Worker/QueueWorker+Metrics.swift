/// When a worker reads the clock, so that request times can be recorded for a batch and not for each request.
internal import VirtioCore

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  /// Turns without a wait, and their answers, between two readings of the clock: turns are so short that reading it in each
  /// would be measurable, because a driver on another CPU submits only one or two requests at a time.
  private static var turnsBetweenMoments: Int { 8 }
  private static var answersBetweenMoments: UInt16 { 32 }

  mutating func noteMoment() {
    guard let meter else { return }
    moment = ArrivalWord(time: meter.clock.now)
  }

  /// The worker has slept.
  mutating func noteWake() {
    noteMoment()
    trace?.wakes()
  }

  /// Something came after the worker had polled for more than a moment.
  @inline(__always)
  mutating func noteLook() { if isMetered, Engine.movesData { noteWake() } }

  /// A lane had its turn: its answers are about to be published.
  @inline(never)
  mutating func measure(_ lane: Int, hasTaken: Bool) {
    unsafe lanes[lane].pointee.showDepth()
    guard unsafe hasTaken || lanes[lane].pointee.hasUnsettled else { return }
    if unsafe lanes[lane].pointee.account.turns == 0 {
      unsafe lanes[lane].pointee.account.began = lanes[lane].pointee.arrival.time
    }
    unsafe lanes[lane].pointee.account.turns &+= 1
    let writes = configuration.counters.value(.writes)
    unsafe lanes[lane].pointee.account.takenWrites &+= writes &- seenWrites
    seenWrites = writes
    if unsafe lanes[lane].pointee.account.turns >= Self.turnsBetweenMoments
      || Engine.movesData && lanes[lane].pointee.owesMoment(answers: Self.answersBetweenMoments, copies: Engine.copies)
    {
      settle(lane)
    }
  }

  mutating func settle(_ lane: Int) {
    noteMoment()
    unsafe lanes[lane].pointee.settle(now: moment.time)
  }

  mutating func settleAll() {
    for index in 0..<lanes.capacity where unsafe lanes.contains(index) && lanes[index].pointee.hasUnsettled { settle(index) }
  }
}
