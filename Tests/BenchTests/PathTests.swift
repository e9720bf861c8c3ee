/// The laboratory's rows, sums and recommendations.
import Foundation
import Testing
import VirtioBlkDevice

@testable import Bench

@Suite struct PathTests {
  private func catalogue(_ scratch: Scratch, processors: Int = 2) throws -> PathCatalogue {
    PathCatalogue(
      image: try scratch.image(), backendCPU: 0, clientCPUs: [1], processors: processors, guestMemory: 1 << 20)
  }

  @Test func everyRowIsSaidInAWordAndASentence() throws {
    let scratch = try Scratch()
    let rows = try catalogue(scratch).rows
    #expect(Set(rows.map(\.id)).count == rows.count)
    for row in rows {
      #expect(row.sentence.hasSuffix("."), "\(row.id)")
      #expect((20...140).contains(row.sentence.count), "\(row.id)")
      #expect((2...32).contains(row.title.count), "\(row.id)")
      if case .impossible(let why) = row.subject { #expect(!why.isEmpty, "\(row.id)") }
    }
  }

  @Test func everyWayIsThere() throws {
    let scratch = try Scratch()
    let rows = try catalogue(scratch).rows
    let ids = Set(rows.map(\.id))
    for engine in EngineKind.allCases where ![.auto, .nbd, .rbd].contains(engine) {
      #expect(ids.contains(engine.rawValue), "\(engine)")
    }
    let wanted = [
      "uring-plain", "uring-cooperative", "uring-deferred", "uring-sqpoll", "uring-sqpoll-cpu", "uring-iopoll",
      "uring-iopoll-hybrid", "uring-no-file", "uring-buffers", "uring-no-ring", "uring-no-index-array", "uring-wait-8",
      "uring-batch-1", "uring-batch-8", "uring-whole", "wait-sleep", "wait-ring", "wait-epoll", "wait-poll-50",
      "wait-adaptive-50",
      "wait-busy", "notify-each", "notify-batch", "notify-event-index", "notify-coalesce",
    ]
    #expect(ids.isSuperset(of: wanted))
    let loops = rows.compactMap { if case .bare(let kind) = $0.subject { kind } else { nil } }
    #expect(loops == BareKind.allCases)
    for row in rows where row.group != .bare && row.id != "null" { #expect(row.limit != nil, "\(row.id)") }
  }

  @Test func aSpareProcessorIsUsed() throws {
    let scratch = try Scratch()
    for (processors, isPossible) in [(2, false), (3, true)] {
      let row = try #require(try catalogue(scratch, processors: processors).rows.first { $0.id == "uring-sqpoll-cpu" })
      if case .impossible(let why) = row.subject {
        if isPossible { #expect(!why.contains("third CPU")) }
      } else {
        #expect(isPossible)
      }
    }
  }

  @Test(arguments: BareKind.allCases, [AccessPattern.randread, .randwrite])
  func bareLoopsRun(kind: BareKind, pattern: AccessPattern) throws {
    let scratch = try Scratch()
    var workload = Workload()
    workload.pattern = pattern
    workload.depth = 4
    do {
      let result = try BareLoop.measure(
        kind, image: try scratch.image(), workload: workload, cpu: nil, ramp: 0.005, seconds: 0.02)
      #expect(result.requests > 0)
      #expect(result.seconds > 0)
      #expect((result.systemCalls > 0) == (kind != .copy))
    } catch BenchError.system("io_uring_setup", _) {
      // A container may forbid io_uring.
    }
  }

  @Test func aShortRunGivesAWholeReport() throws {
    let scratch = try Scratch()
    var options = PathOptions(image: try scratch.image())
    options.depths = [1, 2]
    options.pointDepths = [2]
    options.mainDepth = 2
    options.rounds = 1
    options.slice = 0.01
    options.ramp = 0.002
    var steps = 0
    let report = try PathLaboratory.run(options) { done, total, _ in
      steps += 1
      #expect(done < total)
    }
    #expect(steps > 20)
    for row in report.rows {
      let point = report.point(row.id, depth: 2)
      #expect((point == nil) == (row.impossible != nil), "\(row.id): \(row.impossible ?? "")")
      if let point { #expect(point.iops > 0, "\(row.id)") }
      if let latency = point?.latency {
        #expect(latency["50"].map { $0 > 0 } == true, "\(row.id)")
        #expect(Set(latency.keys) == Set(Percentile.ofCurve.map(\.name)))
      }
    }
    let lines = report.csv().split(separator: "\n").map { $0.filter { $0 == "," }.count }
    #expect(lines.count > report.rows.count)
    // Sentences with commas are quoted; only lines without quotes are counted.
    let plain = report.csv().split(separator: "\n").filter { !$0.contains("\"") }.map { $0.filter { $0 == "," }.count }
    #expect(Set(plain) == [18])
    let decoded = try JSONDecoder().decode(PathReport.self, from: Data(report.json().utf8))
    #expect(decoded.points.count == report.points.count)
    #expect(report.table().contains("recommended here: --engine"))
  }

  // MARK: Sums

  private func sample(_ row: String, _ round: Int, _ iops: Double, depth: Int = 32) -> PathSample {
    PathSample(row: row, depth: depth, round: round, iops: iops, latency: ["50": 8000, "99": 9000])
  }

  @Test func theLimitIsFormedWithinARound() throws {
    let scratch = try Scratch()
    let rows = try catalogue(scratch).rows.filter { ["bare-pread", "sync", "null"].contains($0.id) }
    // The machine was twice as fast in the second round: the ratio to the limit is the same.
    let samples = [1.0, 2.0, 1.0].enumerated().flatMap { round, speed in
      [
        sample("bare-pread", round, 1000 * speed), sample("null", round, 4000 * speed), sample("sync", round, 720 * speed),
      ]
    }
    let point = try #require(PathLaboratory.summarize(rows, samples).first { $0.row == "sync" })
    #expect(point.iops == 720)
    #expect(point.limit == 800)
    #expect(try abs(#require(point.ofLimit) - 0.9) < 1e-9)
    #expect(point.spread == 1)
    #expect(point.latency?["50"] == 8000)
  }

  // MARK: Advice

  private func row(_ id: String, _ group: PathGroup, _ flags: String?) -> PathDescription {
    PathDescription(id: id, group: group, title: id, sentence: "", flags: flags, impossible: nil)
  }

  private func point(
    _ row: String, _ iops: Double, cpu: Double, depth: Int = 32, spread: Double = 0.01, p50: UInt64 = 10_000
  ) -> PathPoint {
    PathPoint(row: row, depth: depth, iops: iops, spread: spread, latency: ["50": p50], cpu: cpu)
  }

  struct Advice: Sendable, CustomTestStringConvertible {
    var name: String
    var sync: (Double, Double)
    var uring: (Double, Double)
    var mapped: (Double, Double)
    var inMemory: Bool
    var flags: String
    var testDescription: String { name }
  }

  @Test(arguments: [
    Advice(name: "the fastest", sync: (100, 1), uring: (300, 3), mapped: (90, 1), inMemory: true, flags: "--engine uring"),
    Advice(
      name: "of equals, the cheapest", sync: (297, 1), uring: (300, 3), mapped: (90, 1), inMemory: true, flags: "--engine sync"),
    Advice(
      name: "a mapping in memory", sync: (300, 2), uring: (200, 3), mapped: (900, 1), inMemory: true, flags: "--engine mapped"),
    Advice(
      name: "no mapping of a disk", sync: (300, 2), uring: (200, 3), mapped: (900, 1), inMemory: false, flags: "--engine sync"),
  ])
  func theRulesChoose(_ advice: Advice) {
    let rows = ["sync", "uring", "mapped", "null"].map { row($0, .engine, "--engine \($0)") }
    let points = [
      point("sync", advice.sync.0, cpu: advice.sync.1), point("uring", advice.uring.0, cpu: advice.uring.1),
      point("mapped", advice.mapped.0, cpu: advice.mapped.1), point("null", 9000, cpu: 0.1),
    ]
    let found = Recommendation(rows: rows, points: points, mainDepth: 32, inMemory: advice.inMemory, rounds: 3)
    #expect(found.flags == advice.flags)
    #expect(!found.reasons.isEmpty)
  }

  @Test func aNoisyRunSaysSo() {
    let rows = [row("sync", .engine, "--engine sync"), row("uring", .engine, "--engine uring")]
    let points = [point("sync", 100, cpu: 1, spread: 2), point("uring", 300, cpu: 3, spread: 0.5)]
    let found = Recommendation(rows: rows, points: points, mainDepth: 32, inMemory: false, rounds: 3)
    #expect(found.reasons.contains { $0.contains("says little") })
  }

  /// The default takes 5 us, sleeping at once 10: being better than sleeping at once is not enough for a recommendation.
  @Test(arguments: [(UInt64(3000), true), (4500, false), (6000, false)])
  func waysToWaitAreHeldAgainstTheDefault(latency: UInt64, isNamed: Bool) {
    let rows = [
      row("sync", .engine, "--engine sync"), row("wait-sleep", .waiting, "--waiting sleep"),
      row("wait-adaptive-50", .waiting, "--waiting adaptive:50"), row("wait-busy", .waiting, "--waiting busy"),
    ]
    let points = [
      point("sync", 300, cpu: 1), point("wait-sleep", 10, cpu: 1, depth: 1),
      point("wait-adaptive-50", 20, cpu: 1, depth: 1, p50: 5000), point("wait-busy", 20, cpu: 1, depth: 1, p50: latency),
    ]
    let found = Recommendation(rows: rows, points: points, mainDepth: 32, inMemory: false, rounds: 3)
    #expect(found.flags == "--engine sync")
    #expect(found.reasons.contains { $0.contains("--waiting busy") } == isNamed)
    #expect(!found.reasons.contains { $0.contains("--waiting sleep") })
  }

  @Test func oneRoundGivesNoSpreadAndNoAdvice() {
    let rows = [row("sync", .engine, "--engine sync"), row("uring", .engine, "--engine uring")]
    let points = [PathPoint([sample("sync", 0, 100)], limits: [:]), PathPoint([sample("uring", 0, 900)], limits: [:])]
    #expect(points.allSatisfy { $0.spread == nil })
    let found = Recommendation(rows: rows, points: points, mainDepth: 32, inMemory: false, rounds: 1)
    #expect(found.flags == "--engine auto")
    #expect(found.reasons.count == 1 && found.reasons[0].contains("--rounds"))
  }

  @Test func aLimitBelowItsResultIsDisturbed() {
    let point = PathPoint([sample("sync", 0, 100), sample("sync", 1, 102)], limits: [0: 50, 1: 51])
    #expect(point.isDisturbed)
    #expect(!PathPoint([sample("sync", 0, 100)], limits: [0: 98]).isDisturbed)
  }
}
