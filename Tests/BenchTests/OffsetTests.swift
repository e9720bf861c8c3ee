/// Requests go to the intended offsets.
import Glibc
import Testing
import VirtioCore

@testable import Bench

@Suite struct OffsetTests {
  private func workload(_ pattern: AccessPattern, jobs: Int = 1) -> Workload {
    var workload = Workload()
    workload.pattern = pattern
    workload.jobs = jobs
    return workload
  }

  @Test func sequencesGoRoundInTheirArea() {
    var source = OffsetSource(workload(.read), range: DiskArea(first: 100, count: 4), start: 2, job: 0)
    #expect((0..<6).map { _ in source.nextBlock() } == [102, 103, 100, 101, 102, 103])
  }

  @Test(arguments: [UInt64(1), 2, 3, 1000, 1 << 40])
  func randomBlocksStayInTheirArea(count: UInt64) {
    var source = OffsetSource(workload(.randread), range: DiskArea(first: 7, count: count), start: 0, job: 0)
    #expect((0..<1000).allSatisfy { _ in (7..<7 + count).contains(source.nextBlock()) })
  }

  @Test func randomBlocksReachEverything() {
    var source = OffsetSource(workload(.randread), range: DiskArea(first: 0, count: 64), start: 0, job: 0)
    #expect(Set((0..<2000).map { _ in source.nextBlock() }).count == 64)
  }

  @Test func jobsDiffer() {
    var sources = (0..<2).map {
      OffsetSource(workload(.randread), range: DiskArea(first: 0, count: 1 << 30), start: 0, job: $0)
    }
    #expect((0..<8).map { _ in sources[0].nextBlock() } != (0..<8).map { _ in sources[1].nextBlock() })
  }

  @Test(arguments: [0, 30, 50, 100])
  func theMixIsWhatWasAsked(percent: Int) {
    var mixed = workload(.randrw)
    mixed.readPercentage = percent
    var source = OffsetSource(mixed, range: DiskArea(first: 0, count: 10), start: 0, job: 0)
    let reads = (0..<10_000).count { _ in !source.nextWrites() }
    #expect(abs(reads - percent * 100) < 200)
  }

  @Test func checkedQueuesKeepApart() throws {
    var checked = workload(.randwrite, jobs: 3)
    checked.verification = .crc32c
    let areas = try (0..<3).map { try checked.range(of: $0, capacity: 100 * 4096).range }
    #expect(areas == [DiskArea(first: 0, count: 33), DiskArea(first: 33, count: 33), DiskArea(first: 66, count: 33)])
    checked.depth = 33
    #expect(throws: BenchError.self) { try checked.range(of: 0, capacity: 100 * 4096) }
  }

  @Test func sequencesBeginApart() throws {
    let starts = try (0..<4).map { try workload(.read, jobs: 4).range(of: $0, capacity: 400 * 4096).start }
    #expect(starts == [0, 100, 200, 300])
    #expect(throws: BenchError.self) { try workload(.read, jobs: 4).range(of: 0, capacity: 3 * 4096) }
  }
}

@Suite struct FormatTests {
  @Test(arguments: [
    (0.0, "0"), (0.0004, "0.000"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234, "1.23 k"),
    (1_234_567, "1.23 M"), (2e9, "2.00 G"),
  ])
  func counts(value: Double, text: String) { #expect(Format.count(value) == text) }

  @Test(arguments: [(0.05, 1, "0.1"), (-1.5, 0, "-2"), (1.005, 3, "1.005"), (99.9, 6, "99.900000"), (.infinity, 1, "-")])
  func fixed(value: Double, digits: Int, text: String) { #expect(Format.fixed(value, digits) == text) }

  @Test(arguments: [("0", [0]), ("0-2,5", [0, 1, 2, 5]), ("", []), ("x", []), ("3-1", [])] as [(String, [Int])])
  func processorLists(text: String, wanted: [Int]) { #expect(ProcessFiles.processors(text).sorted() == wanted) }

  @Test func ownProcessIsSeen() {
    let own = getpid()
    #expect(ProcessFiles.switches(of: own) != nil)
    #expect(ProcessFiles.busiestThreadProcessors(of: own)?.isEmpty == false)
    #expect(Clock.process(own).map { $0 > 0 } == true)
    // Larger than any process ID of Linux.
    #expect(Clock.process(1 << 23) == nil)
    #expect(ProcessFiles.switches(of: 1 << 23) == nil)
  }
}
