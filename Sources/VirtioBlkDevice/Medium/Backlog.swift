/// Jobs that have something to do before anything completes: a queue's thread does a little of it each turn.

/// At most as many entries as there are tags.
struct Backlog {
  /// How long a job rests that the medium has no resources for just now: nanoseconds.
  static let rest: UInt64 = 1_000_000

  private var ready = Line<UInt32>()
  private var resting = Line<UInt32>()
  private var waiting = Line<UInt32>()
  /// When those that rest are tried again; `Clock` nanoseconds.
  private(set) var restEnds: UInt64?

  /// There is work that needs no event.
  var hasReady: Bool {
    @inline(__always) get { !ready.isEmpty }
  }
  var hasResting: Bool { restEnds != nil }

  mutating func append(_ tag: UInt32) { ready.append(tag) }

  mutating func rest(_ tag: UInt32, now: UInt64) {
    resting.append(tag)
    restEnds = restEnds ?? now &+ Self.rest
  }

  mutating func waitForBuffer(_ tag: UInt32) { waiting.append(tag) }

  /// A buffer came back.
  mutating func wakeOne() { if let tag = waiting.removeFirst() { ready.append(tag) } }

  mutating func wakeRested(now: UInt64) {
    guard let end = restEnds, now >= end else { return }
    restEnds = nil
    while let tag = resting.removeFirst() { ready.append(tag) }
  }

  mutating func next() -> UInt32? { ready.removeFirst() }

  mutating func removeAll() { self = Backlog() }
}
