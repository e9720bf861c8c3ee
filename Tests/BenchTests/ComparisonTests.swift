/// Whether two results differ is decided by their spread.
import Testing

@testable import Bench

@Suite struct ComparisonTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var first: [Double]
    var second: [Double]
    var higher: Verdict
    var lower: Verdict
    var testDescription: String { "\(first) and \(second)" }
  }

  @Test(arguments: [
    Case(first: [100, 101, 99, 100, 100], second: [120, 121, 119, 120, 122], higher: .better, lower: .worse),
    Case(first: [120, 121, 119, 120, 122], second: [100, 101, 99, 100, 100], higher: .worse, lower: .better),
    Case(first: [100, 140, 80, 120, 60], second: [110, 150, 90, 130, 70], higher: .same, lower: .same),
    Case(first: [100, 100, 100], second: [100, 100, 100], higher: .same, lower: .same),
    Case(first: [100, 100, 100], second: [101, 101, 101], higher: .better, lower: .worse),
    Case(first: [100], second: [200], higher: .unknown, lower: .unknown),
    Case(first: [100, 101], second: [200, 201, 202], higher: .unknown, lower: .unknown),
    Case(first: [0, 0, 0], second: [1, 1, 1], higher: .unknown, lower: .unknown),
  ])
  func verdicts(_ one: Case) {
    let ratio = Ratio(Samples(values: one.first), Samples(values: one.second))
    #expect(ratio.verdict(higherIsBetter: true) == one.higher)
    #expect(ratio.verdict(higherIsBetter: false) == one.lower)
  }

  @Test func intervalHoldsTheRatio() throws {
    let ratio = Ratio(Samples(values: [100, 104, 96, 102, 98]), Samples(values: [200, 208, 192, 204, 196]))
    let interval = try #require(ratio.interval)
    #expect(interval.low < 2 && 2 < interval.high)
    #expect(ratio.value == 2)
  }

  @Test(arguments: [(1.0, 12.706), (1.9, 12.706), (4, 2.776), (4.5, 2.776), (8, 2.306), (1000, 1.98)])
  func quantilesAreOnTheSafeSide(freedom: Double, quantile: Double) {
    #expect(Ratio.studentQuantile(freedom) == quantile)
  }

  private func file(_ rates: [Double], bs: String = "4096") -> String {
    let jobs = rates.map {
      #"{"jobname":"j","job options":{"rw":"randread","bs":"\#(bs)","iodepth":"32"},"read":{"iops":\#($0)},"write":{"iops":0}}"#
    }
    return #"{"jobs":[\#(jobs.joined(separator: ","))]}"#
  }

  @Test func filesOfFioAndOursMeet() throws {
    let first = try SavedResult(file([1, 2, 3]), name: "a")
    // fio writes sizes with a unit, and leaves numjobs out if it is 1.
    let second = try SavedResult(file([4, 5, 6], bs: "4k"), name: "b")
    let comparison = try Comparison(first, second)
    #expect(comparison.lines.map(\.figure) == ["IOPS"])
    #expect(comparison.lines.first?.ratio.value == 2.5)
    #expect(comparison.table().contains("randread"))
  }

  @Test func nothingInCommonIsSaid() throws {
    let first = try SavedResult(file([1]), name: "a")
    let second = try SavedResult(file([1], bs: "8k"), name: "b")
    #expect(throws: BenchError.self) { try Comparison(first, second) }
  }

  @Test(arguments: ["", "{}", "[]", #"{"jobs":[]}"#, #"{"jobs":[{"jobname":"j"}]}"#, "root:x:0"])
  func whatIsNoReportIsRefused(text: String) {
    #expect(throws: BenchError.self) { try SavedResult(text, name: "file") }
  }

  @Test func savedResultsCompareWithThemselves() throws {
    var options = BenchmarkOptions.short(.echo)
    options.repeats = 3
    let text = try Benchmark.run(options).json(plus: false)
    let comparison = try Comparison(try SavedResult(text, name: "a"), try SavedResult(text, name: "a"))
    #expect(comparison.lines.allSatisfy { $0.ratio.value == 1 && $0.verdict == .same })
    #expect(comparison.lines.map(\.figure).contains("CPU us/IO"))
  }

  @Test func differentConditionsAreNamed() throws {
    func saved(_ change: (inout Conditions) -> Void) throws -> SavedResult {
      var options = BenchmarkOptions.short(.echo)
      var conditions = Conditions()
      conditions.engine = "uring"
      conditions.direct = true
      change(&conditions)
      options.conditions = conditions
      return try SavedResult(try Benchmark.run(options).json(plus: false), name: "file")
    }
    let table = try Comparison(
      saved { _ in },
      saved {
        $0.engine = "aio"
        $0.direct = false
      }
    ).table()
    #expect(table.contains("they differ in engine: uring / aio; direct: true / false"))
    #expect(table.contains("file (uring, direct, "))
    #expect(try Comparison(saved { _ in }, saved { _ in }).table().contains("under the same conditions"))
  }
}
