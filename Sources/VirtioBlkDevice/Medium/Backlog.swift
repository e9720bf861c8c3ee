/// Jobs that have something to do before anything completes: a queue's thread does a little of it each turn.

/// At most as many entries as there are tags.
struct Backlog {
  /// Jobs that are tried again after a while.
  private struct Rest {
    /// Nanoseconds.
    let period: UInt64
    private var line = Line<UInt32>()
    /// When they are tried again; `Clock` nanoseconds, `nil` when there is none.
    private(set) var end: UInt64?

    init(period: UInt64) { self.period = period }

    mutating func append(_ tag: UInt32, now: UInt64) {
      line.append(tag)
      end = end ?? now &+ period
    }

    /// Those whose time has come.
    mutating func wake(now: UInt64, into ready: inout Line<UInt32>) {
      guard let end, now >= end else { return }
      self.end = nil
      while let tag = line.removeFirst() { ready.append(tag) }
    }
  }

  private var ready = Line<UInt32>()
  /// The medium has no resources for them just now.
  private var resting = Rest(period: 1_000_000)
  /// They went well, and what was beside them has not been heard of yet.
  private var unheard = Rest(period: 100_000)
  private var waiting = Line<UInt32>()

  /// There is work that needs no event.
  var hasReady: Bool {
    @inline(__always) get { !ready.isEmpty }
  }
  /// When those that rest are tried again; `Clock` nanoseconds.
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
