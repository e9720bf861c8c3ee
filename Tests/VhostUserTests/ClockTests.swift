/// Setting the clock back changes only the time stamps of log lines and reports: nothing waits on the time of day, and nothing
/// is measured with it. Setting it would disturb the whole machine, and time namespaces do not cover it, so the sources are
/// searched instead.
import Foundation
import TestSupport
import Testing

@Suite struct ClockTests {
  /// Files that write the time of day for readers, or the start time of the process for collectors.
  private static let stamps: Set<String> = [
    "vmm-blk/LineLogHandler.swift", "vmm-blk/OperatorFigures.swift", "Bench/Report/FioReport+Result.swift",
    "Bench/Paths/PathLaboratory.swift", "vmm-blk/ImageSnapshotCommand.swift",
    // The list of system call names.
    "Sandbox/SystemCalls.swift",
  ]

  /// Calls that read the time of day, or wait until one.
  private static let words = [
    "CLOCK_REALTIME", "CLOCK_TAI", "gettimeofday", "time(nil)", "time(NULL)", "Date()", "Date.now", "timeIntervalSince",
    "pthread_cond_timedwait", "pthread_mutex_timedlock", "pthread_rwlock_timed", "sem_timedwait", "mq_timed",
    "FUTEX_CLOCK_REALTIME", "wallDeadline", "TFD_TIMER_CANCEL_ON_SET", "setitimer", "alarm(",
    // Foundation's waits that take a date.
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
