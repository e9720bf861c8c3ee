/// A worker's part of a trace: when it polls and when it sleeps, and for how much of the time it records.

struct WorkerTrace {
  /// What its lanes have to do.
  enum Change { case rest, record }

  /// Nanoseconds. In each interval of this length a fixed number of records is written, and then none for the rest of it:
  /// recording a request costs a few tenths of a microsecond, too much for a thread that serves millions of them.
  private static let period: UInt64 = 100_000_000

  let buffer: TraceBuffer
  private let budget: UInt64
  private var periodBegan: UInt64
  private var writtenThen: UInt64 = 0
  private var restsSince: UInt64 = 0
  private var sleepsSince: UInt64 = 0
  private var pollsSince: UInt64 = 0

  /// - Parameter buffer: where to write, and how much.
  init(_ buffer: TraceBuffer) {
    self.buffer = buffer
    budget = buffer.budget
    periodBegan = buffer.writer.now
    writtenThen = buffer.written
  }

  var isResting: Bool { restsSince != 0 }

  /// Nanoseconds until recording continues; `nil`: it is recording.
  var restLeft: Int64? {
    guard isResting else { return nil }
    let gone = buffer.writer.nanoseconds(from: periodBegan, to: buffer.writer.now)
    return Int64(Self.period &- min(gone, Self.period)) + 1
  }

  /// To be called at the beginning of a turn.
  mutating func nextChange() -> Change? {
    let written = buffer.written
    guard isResting || written &- writtenThen >= budget else { return nil }
    let now = buffer.writer.now
    let isOver = buffer.writer.nanoseconds(from: periodBegan, to: now) >= Self.period
    if isOver { periodBegan = now }
    switch (isResting, isOver) {
    case (false, false):
      restsSince = now
      return .rest
    case (true, false): return nil
    case (false, true):
      writtenThen = written
      return nil
    case (true, true):
      endRest()
      writtenThen = buffer.written
      return .record
    }
  }

  mutating func beginsToPoll() { if !isResting { pollsSince = buffer.writer.now } }

  mutating func fallsAsleep() {
    guard !isResting else { return }
    endPoll()
    sleepsSince = buffer.writer.now
  }

  /// The worker has something to do from now on, whether it slept or polled before.
  mutating func wakes() {
    endPoll()
    guard sleepsSince != 0 else { return }
    buffer.writer.append(TraceRecord(.asleep, times: (sleepsSince, buffer.writer.now, 0, 0)))
    sleepsSince = 0
  }

  func noticesKick() { if !isResting { buffer.writer.append(TraceRecord(.kick, times: (buffer.writer.now, 0, 0, 0))) } }

  /// Ends the trace.
  mutating func end() {
    wakes()
    endRest()
  }

  private mutating func endPoll() {
    guard pollsSince != 0 else { return }
    buffer.writer.append(TraceRecord(.polling, times: (pollsSince, buffer.writer.now, 0, 0)))
    pollsSince = 0
  }

  private mutating func endRest() {
    guard restsSince != 0 else { return }
    buffer.writer.append(TraceRecord(.rest, times: (restsSince, buffer.writer.now, 0, 0)))
    restsSince = 0
  }
}
