/// A clock that is set back changes nothing but the stamps of lines and reports: nothing waits on it, and nothing is measured
/// with it. Setting it would disturb the whole machine, and time namespaces do not have it, so the sources are read instead.
import Foundation
import TestSupport
import Testing

@Suite struct ClockTests {
  /// Where the time of day is written for readers, and for collectors: when the process began.
  private static let stamps: Set<String> = [
    "vmm-blk/LineLogHandler.swift", "vmm-blk/OperatorFigures.swift", "Bench/Report/FioReport+Result.swift",
    "Bench/Paths/PathLaboratory.swift", "vmm-blk/ImageSnapshotCommand.swift",
    // A list of the names of system calls.
    "Sandbox/SystemCalls.swift",
  ]

  /// What reads the time of day, or waits until some.
  private static let words = [
    "CLOCK_REALTIME", "CLOCK_TAI", "gettimeofday", "time(nil)", "time(NULL)", "Date()", "Date.now", "timeIntervalSince",
    "pthread_cond_timedwait", "pthread_mutex_timedlock", "pthread_rwlock_timed", "sem_timedwait", "mq_timed",
    "FUTEX_CLOCK_REALTIME", "wallDeadline", "TFD_TIMER_CANCEL_ON_SET", "setitimer", "alarm(",
    // Waits of Foundation that take a date.
    "wait(until:", "sleep(until:", "RunLoop",
  ]

  @Test func nothingDependsOnTheTimeOfDay() throws {
    let sources = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appendingPathComponent("Sources")
    let files = try #require(FileManager.default.enumerator(atPath: sources.path)).compactMap { $0 as? String }
      .filter { $0.hasSuffix(".swift") || $0.hasSuffix(".h") }
    #expect(files.count > 100)
    var stampers: Set<String> = []
    for file in files {
      let text = try String(contentsOf: sources.appendingPathComponent(file), encoding: .utf8)
      let found = Self.words.filter { text.contains($0) }
      if found.isEmpty { continue }
      stampers.insert(file)
      #expect(Self.stamps.contains(file), "\(file) has \(found.joined(separator: ", "))")
    }
    #expect(stampers == Self.stamps)
  }
}
