/// A worker looks for what comes before it sleeps: for a while, at rings, completions and the mailbox.
internal import Glibc
internal import VirtioCore

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  /// Looks at a ring in memory between two looks that need a system call.
  static var looksBetweenPolls: Int { 128 }
  /// Looks that need a system call after the first yield until the next, and between later ones.
  private static var pollsToYield: (second: Int, later: Int) { (8, 64) }
  /// The first looks at the rings, before the clock is asked when to stop.
  private static var looksWithoutClock: Int { 8 }

  /// Looks for available chains and completions for a while instead of sleeping. - Returns: whether there were any.
  mutating func look() -> Bool {
    medium.engine.submit()
    let isEndless = window.current == .max
    // A look that was left for a turn continues to its end.
    var end = lookEnds
    lookEnds = nil
    var round = 0
    var pollsUntilYield = 1
    while true {
      for index in 0..<lanes.capacity where unsafe lanes.contains(index) && lanes[index].pointee.hasAvailable() {
        if round >= roundsBetweenPolls { noteLook() }
        return true
      }
      if let event = medium.nextEvent() {
        handle(event)
        if round >= roundsBetweenPolls { noteLook() }
        return true
      }
      round &+= 1
      // The clock is read the first time when nothing came at once: that costs what a tenth of a request does.
      if round == Self.looksWithoutClock, !isEndless, end == nil { end = Clock.now &+ window.current }
      // Messages and completions that need a system call to be seen, and the clock, are looked at once a microsecond or so: a
      // driver with one request at a time answers sooner, and would wait for the call to return.
      if round % roundsBetweenPolls == 0 {
        // It was not at once that something came: what this takes belongs to no request.
        if round == roundsBetweenPolls, isMetered, Engine.movesData { settleAll() }
        medium.engine.poll()
        // Whoever does the work that is waited for (a kernel worker, say) may have to do it on this very CPU. Not each time: what
        // is left of a slice is forfeited with it, and a neighbour that never yields would get that.
        pollsUntilYield &-= 1
        if pollsUntilYield == 0 {
          sched_yield()
          pollsUntilYield = round == roundsBetweenPolls ? Self.pollsToYield.second : Self.pollsToYield.later
        }
        if !isEndless {
          let now = Clock.now
          let ends = end ?? now &+ window.current
          if now >= ends { return false }
          end = ends
        }
        if coalesces || unkicked > 0 || hasEnded || medium.restEnds != nil || hasSideWork && isDue {
          noteLook()
          lookEnds = end
          return true
        }
      }
    }
  }

  /// Who is held back by a limit does not check for work: more would only wait, too. One that never sleeps looks all the same.
  mutating func mayLook() -> Bool {
    guard window.current == .max || throttledUntil == nil else { return false }
    trace?.beginsToPoll()
    return true
  }
}
