/// What the main thread tells the client's threads, and they it: one word each, looked at between turns.
internal import Synchronization

/// How far a run is.
enum RunPhase: UInt32 {
  /// Requests run, nothing counts yet (fio's ramp time).
  case warming
  case measuring
  /// Nothing new is submitted; what is in flight is awaited, then read back where contents are checked.
  case draining
  /// Nobody waits any more.
  case abandoned
}

final class RunControl: Sendable {
  private let word = Atomic<UInt32>(RunPhase.warming.rawValue)
  private let ended = Atomic<Int>(0)
  private let failed = Atomic<Bool>(false)

  @inline(__always) var phase: RunPhase { RunPhase(rawValue: word.load(ordering: .relaxed)) ?? .abandoned }
  func move(to phase: RunPhase) { word.store(phase.rawValue, ordering: .relaxed) }

  /// Threads that are done.
  var endedThreads: Int { ended.load(ordering: .acquiring) }
  /// A thread gave up before it was told to.
  var hasFailed: Bool { failed.load(ordering: .acquiring) }

  func end(failed: Bool) {
    if failed { self.failed.store(true, ordering: .releasing) }
    ended.add(1, ordering: .releasing)
  }
}
