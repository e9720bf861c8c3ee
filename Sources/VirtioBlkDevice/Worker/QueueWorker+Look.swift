/// Polling: before a worker sleeps, it polls rings, completions and the mailbox for a while.
internal import Glibc
internal import VirtioCore

/// When to yield: checked after each poll that needs a system call, and due at the first, eight polls later, and then after
/// every 64.
struct YieldPace {
  private var left = 1
  private var next = 8

  mutating func isDue() -> Bool {
    left &-= 1
    guard left == 0 else { return false }
    (left, next) = (next, 64)
    return true
  }
}

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  /// Rounds over rings in memory between two polls that need a system call.
  static var looksBetweenPolls: Int { 128 }
  /// The same while other threads work on something in flight: often they need this CPU, and it takes a few yields until the
  /// scheduler prefers them to a thread with a short slice.
  private static var looksWhileOthersWork: Int { 16 }
  /// The first rounds over the rings, before the clock is read.
  private static var looksWithoutClock: Int { 8 }

  /// Polls for available chains and completions for a while instead of sleeping. - Returns: whether there were any.
  mutating func look() -> Bool {
    medium.engine.submit()
    let isEndless = window.current == .max
    // Polling that was interrupted for a turn continues to its end.
    var end = lookEnds
    if end == nil { yields = YieldPace() }
    lookEnds = nil
    let rounds = medium.engine.awaitsThreads ? min(Self.looksWhileOthersWork, roundsBetweenPolls) : roundsBetweenPolls
    var round = 0
    while true {
      for index in 0..<lanes.capacity where unsafe lanes.contains(index) && lanes[index].pointee.hasAvailable() {
        if round >= rounds { noteLook() }
        return true
      }
      if let event = medium.nextEvent() {
        handle(event)
        if round >= rounds { noteLook() }
        return true
      }
      round &+= 1
      // The clock is first read when nothing came at once: reading it costs a tenth of a request.
      if round == Self.looksWithoutClock, !isEndless, end == nil { end = Clock.now &+ window.current }
      // Sources that need a system call (messages, some completions) and the clock are polled about once a microsecond at
      // most: a driver with one request at a time may respond sooner, and would have to wait for the call to return.
      if round % rounds == 0 {
        // Nothing came at once: the time from here on does not count for any request.
        if round == rounds, isMetered, Engine.movesData { settleAll() }
        medium.engine.poll()
        // The threads that do the awaited work may need this CPU. If none are known, not each time: a yield gives up the rest of
        // the time slice, to a neighbour that may never yield.
        if medium.engine.awaitsThreads || yields.isDue() { sched_yield() }
        // Nothing comes from a lost engine; the sleep that follows reports that to the queues.
        if medium.engine.isLost { return false }
        if !isEndless {
          let now = Clock.now
          let ends = end ?? now &+ window.current
          if now >= ends { return false }
          end = ends
        }
        if coalesces || unkicked > 0 || hasEnded || medium.restEnds != nil || hasSideWork && isDue {
          noteLook()
          lookEnds = end ?? .max
          return true
        }
      }
    }
  }

  /// A worker that is held back by a limit does not poll: new requests would only wait, too. A worker that never sleeps polls
  /// anyway.
  mutating func mayLook() -> Bool {
    guard window.current == .max || throttledUntil == nil else { return false }
    trace?.beginsToPoll()
    return true
  }
}
