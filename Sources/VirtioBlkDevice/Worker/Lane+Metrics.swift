/// Measures how long a lane's requests take. The clock is read once per batch, not per request.
internal import VirtioCore

/// What a lane needs for that.
struct LaneMeter {
  let block: MetricsBlock
  let clock: TickClock
}

/// What a lane has done since it was last recorded.
struct LaneAccount: ~Copyable {
  /// Answers to requests with a slot.
  var answers: AnswerRuns
  /// The ring's count of pushed chains at that time.
  var settledPushes: UInt16 = 0
  /// Writes that were popped, and those of them that kept a slot.
  var takenWrites: UInt64 = 0
  var keptWrites: UInt64 = 0
  var turns = 0
  /// When the first of these turns began.
  var began: UInt64 = 0
}

extension Lane where Ring: ~Copyable {
  /// Counts the answer to a request with a slot that is not a plain transfer of the present run.
  @inline(never)
  mutating func countOther(_ slot: UnsafeMutablePointer<RequestSlot>) {
    let arrival = unsafe slot.pointee.arrival
    // With a trace, each answer is recorded.
    let isPlain = unsafe slot.pointee.stage == .transfer && arrival.isTransfer && trace == nil
    if trace != nil { unsafe noteAnswered(slot) }
    guard let meter else { return }
    guard !account.answers.add(arrival, isPlain: isPlain) else { return }
    settle(now: meter.clock.now)
    _ = account.answers.add(arrival, isPlain: isPlain)
  }

  /// A request is answered with another status than OK.
  mutating func countFailure(_ status: BlockStatus) {
    counters.add(status == .unsupported ? .unsupported : .ioErrors)
  }

  /// There are answers whose time is not recorded yet.
  var hasUnsettled: Bool { ring.pushes != account.settledPushes }

  /// Whether the clock has to be read now, because times would be too inaccurate later.
  ///
  /// - Parameters:
  ///   - answers: after this many answers the clock is read.
  ///   - copies: that of the engine. Requests that wait for a medium are timed by the turn.
  func owesMoment(answers: UInt16, copies: Bool) -> Bool {
    ring.pushes &- account.settledPushes >= answers || !copies && (slab.inUse > 0 || !account.answers.isEmpty)
  }

  /// Records how long the requests took that were answered since the last call, and are about to be published.
  @inline(never)
  mutating func settle(now: UInt64) {
    guard let meter else { return }
    let (block, clock) = (meter.block, meter.clock)
    let kept = account.answers.takeAll { run in
      block.record(run.arrival.kind, nanoseconds: clock.nanoseconds(from: run.arrival.time, to: now), count: run.count)
    }
    let pushes = ring.pushes
    // Far fewer than the ring's counter can hold: a turn pops a few hundred at most.
    let inPlace = UInt64(pushes &- account.settledPushes &- UInt16(truncatingIfNeeded: kept))
    if inPlace > 0 {
      // What completes in place arrives and is answered in one turn.
      let time = clock.nanoseconds(from: account.began, to: now) / UInt64(max(1, account.turns))
      let writes = min(inPlace, account.takenWrites &- min(account.takenWrites, account.keptWrites))
      if inPlace > writes { block.record(RequestKind.read.rawValue, nanoseconds: time, count: inPlace &- writes) }
      if writes > 0 { block.record(RequestKind.write.rawValue, nanoseconds: time, count: writes) }
    }
    account.settledPushes = pushes
    account.takenWrites = 0
    account.keptWrites = 0
    account.turns = 0
  }
}
