/// What the main thread and the client's threads tell each other: one word each, read between turns.
internal import Synchronization

/// The phase of a run.
enum RunPhase: UInt32 {
  /// Requests run, nothing counts yet (fio's ramp time).
  case warming
  case measuring
  /// Nothing new is submitted; requests in flight complete, and then contents are read back if they are checked.
  case draining
  /// Nothing is waited for any more.
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
