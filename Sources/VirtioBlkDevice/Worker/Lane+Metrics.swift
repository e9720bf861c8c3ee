/// How long a lane's requests took. The clock is read for a batch, not for a request.
internal import VirtioCore

/// What a lane needs for it.
struct LaneMeter {
  let block: MetricsBlock
  let clock: TickClock
}

/// What a lane has done since it was last recorded.
struct LaneAccount: ~Copyable {
  /// Answers to requests with a slot.
  var answers: AnswerRuns
  /// Chains pushed by then, as the ring counts them.
  var settledPushes: UInt16 = 0
  /// Writes that were taken, and those of them that got a slot.
  var takenWrites: UInt64 = 0
  var keptWrites: UInt64 = 0
  var turns = 0
  /// When the first of these began.
  var began: UInt64 = 0
}

extension Lane where Ring: ~Copyable {
  /// A request with a slot is answered, other than a plain transfer that arrived with the previous one.
  @inline(never)
  mutating func countOther(_ slot: UnsafeMutablePointer<RequestSlot>) {
    let arrival = unsafe slot.pointee.arrival
    // Each is recorded while there is a trace.
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

  /// Times would be too inaccurate if the clock were read later.
  ///
  /// - Parameters:
  ///   - answers: this many take long enough.
  ///   - copies: of the engine. What waits for a medium is timed by the turn.
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
    // Far fewer than the ring can count: a turn takes some hundreds.
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
