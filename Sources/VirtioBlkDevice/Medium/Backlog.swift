/// Jobs that can go on before anything completes: the queue's thread does a few of them in each turn.

/// At most as many entries as there are tags.
struct Backlog {
  /// Jobs that are retried after a while.
  private struct Rest {
    /// Nanoseconds.
    let period: UInt64
    private var line = Line<UInt32>()
    /// When they are retried, `Clock` nanoseconds; `nil` if there are none.
    private(set) var end: UInt64?

    init(period: UInt64) { self.period = period }

    mutating func append(_ tag: UInt32, now: UInt64) {
      line.append(tag)
      end = end ?? now &+ period
    }

    /// Moves all of them to the ready ones if it is time to retry them.
    mutating func wake(now: UInt64, into ready: inout Line<UInt32>) {
      guard let end, now >= end else { return }
      self.end = nil
      while let tag = line.removeFirst() { ready.append(tag) }
    }
  }

  private var ready = Line<UInt32>()
  /// Jobs for which the medium has no resources at the moment.
  private var resting = Rest(period: 1_000_000)
  /// Jobs that succeeded while the outcome of overlapping ones is not known yet.
  private var unheard = Rest(period: 100_000)
  private var waiting = Line<UInt32>()

  /// Whether there are jobs that need no event to go on.
  var hasReady: Bool {
    @inline(__always) get { !ready.isEmpty }
  }
  /// When the resting jobs are retried, `Clock` nanoseconds.
  private(set) var restEnds: UInt64?
  var hasResting: Bool { restEnds != nil }

  mutating func append(_ tag: UInt32) { ready.append(tag) }

  mutating func rest(_ tag: UInt32, now: UInt64) {
    resting.append(tag, now: now)
    noteEnd()
  }

  mutating func waitForOthers(_ tag: UInt32, now: UInt64) {
    unheard.append(tag, now: now)
    noteEnd()
  }

  mutating func waitForBuffer(_ tag: UInt32) { waiting.append(tag) }

  /// A buffer came back.
  mutating func wakeOne() { if let tag = waiting.removeFirst() { ready.append(tag) } }

  mutating func wakeRested(now: UInt64) {
    guard let end = restEnds, now >= end else { return }
    resting.wake(now: now, into: &ready)
    unheard.wake(now: now, into: &ready)
    noteEnd()
  }

  private mutating func noteEnd() {
    restEnds = if let one = resting.end, let other = unheard.end { min(one, other) } else { resting.end ?? unheard.end }
  }

  mutating func next() -> UInt32? { ready.removeFirst() }

  mutating func removeAll() { self = Backlog() }
}
