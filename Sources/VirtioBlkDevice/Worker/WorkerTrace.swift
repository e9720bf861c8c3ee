/// What a worker itself does while it is traced: when it polls and when it sleeps.

struct WorkerTrace {
  let buffer: TraceBuffer
  private var sleepsSince: UInt64 = 0
  private var pollsSince: UInt64 = 0

  init(_ buffer: TraceBuffer) { self.buffer = buffer }

  mutating func beginsToPoll() { pollsSince = buffer.writer.now }

  mutating func fallsAsleep() {
    endPoll()
    sleepsSince = buffer.writer.now
  }

  /// It has something to do, whatever it did before.
  mutating func wakes() {
    endPoll()
    guard sleepsSince != 0 else { return }
    buffer.writer.append(TraceRecord(.asleep, times: (sleepsSince, buffer.writer.now, 0, 0)))
    sleepsSince = 0
  }

  func noticesKick() { buffer.writer.append(TraceRecord(.kick, times: (buffer.writer.now, 0, 0, 0))) }

  private mutating func endPoll() {
    guard pollsSince != 0 else { return }
    buffer.writer.append(TraceRecord(.polling, times: (pollsSince, buffer.writer.now, 0, 0)))
    pollsSince = 0
  }
}
