/// `vmm-blk verify-crash`: what a power failure could leave of a disk, checked against what its driver was promised.
public import ArgumentParser
public import CrashCheck
internal import Foundation
internal import Glibc
internal import OperatorWords
public import VirtioBlkDevice

extension CrashMode: ExpressibleByArgument {}
extension PlantedMistake: ExpressibleByArgument {}

struct VerifyCrashCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify-crash",
    abstract: "Check that no power failure loses data that the guest was promised.",
    usage: """
      vmm-blk verify-crash [<options>]
      vmm-blk verify-crash --log <file> --base <file> --check <text>
      """,
    discussion: """
      A driver in this process issues random requests on a scratch image. Every write, flush, discard and write-zeroes that \
      reaches the medium is recorded, with every request and every answer. Then the power fails at random moments of that \
      record, and images are built of what the medium may hold: what was flushed, and any subset of the later changes, \
      whole or sector by sector; all subsets of whole changes if there are few. In each of them every sector must hold what \
      the driver may rely on: the last write that was promised to be stable, or a later one.

      A write is promised if it was answered before a FLUSH was submitted that was answered as well; with writeback 0, or without \
      FLUSH, every answered write is promised. One thing is assumed of the medium: that data written before the start of an \
      fdatasync, or with RWF_DSYNC, is there once that call has returned.

      --plant adds a fault to the device, to show that it is found: status 1.

      With --log the images are built from a log of writes, as `serve --record` and the kernel's dm-log-writes produce it, of a \
      disk that held --base at the start. --check is a shell command that judges each image, `$1`; status 0 means that it is good.
      """)

  @Option(help: .init("The least number of images to check. (default: 10000, with --log 200)", valueName: "n")) var images: Int?
  @Option(help: .init("Seed of the random requests and images; random by default.", valueName: "n"))
  var seed: UInt64?
  @Option(help: "How the driver asks for stable writes. May be repeated; all ways by default.")
  var mode: [CrashMode] = []
  @Option(help: "The engine. May be repeated; all available ones by default.")
  var engine: [EngineKind] = []
  @Option(help: .init("Where to create the scratch images, which are removed at the end.", valueName: "path")) var folder =
    "/var/tmp"
  @Option(help: .init("A fault to plant: \(Self.mistakes)", valueName: "name")) var plant: PlantedMistake?
  @Option(help: .init("A log of writes in the format of dm-log-writes.", valueName: "file")) var log: String?
  @Option(help: .init("The contents of the logged disk at the start.", valueName: "file")) var base: String?
  @Option(help: .init("The shell command that judges an image of a logged disk.", valueName: "text")) var check: String?
  @Flag(help: "Print JSON.") var json = false

  private static let mistakes = PlantedMistake.allCases.map { "\($0.rawValue) (\($0.summary))" }.joined(separator: ", ")

  func validate() throws {
    if let images, !(1...1_000_000_000).contains(images) {
      throw ValidationError("--images \(images) is not from 1 to 1000000000.")
    }
    guard [log, base, check].allSatisfy({ $0 == nil }) || [log, base, check].allSatisfy({ $0 != nil }) else {
      throw ValidationError("--log, --base and --check belong together: give all of them, or none.")
    }
    guard log == nil || mode.isEmpty && engine.isEmpty && plant == nil && !json else {
      throw ValidationError("--mode, --engine, --plant and --json are not for a log: leave them out.")
    }
    if let engine = engine.first(where: { $0 == .null || $0 == .auto }) {
      throw ValidationError("--engine \(engine.rawValue) writes nothing that could be checked: use another one.")
    }
    if plant != nil, !engine.isEmpty, engine != [.sync] { throw CrashCheckError.plantNeedsSync }
  }

  func run() throws {
    let seed = seed ?? UInt64.random(in: 0..<1 << 32)
    if let log, let base, let check { return try run(log: log, base: base, command: check, seed) }
    let images = images ?? 10_000
    var options = CrashCheckOptions(seed: seed, images: images)
    if !mode.isEmpty { options.modes = mode }
    if !engine.isEmpty { options.engines = engine }
    if plant != nil { options.engines = [.sync] }
    options.folder = folder
    options.plant = plant
    // Printed at once, so that even a run that hangs can be repeated.
    if !json { print("seed \(seed)") }
    let isShown = isatty(STDERR_FILENO) == 1
    let start = ContinuousClock.now
    var check = try CrashCheck(options)
    let report = try check.run { report in
      guard isShown else { return }
      let total = report.total
      BenchOutput.note(
        "\r\u{1b}[K\(total.images) of \(images) images, \(total.violatedImages) with violations, \(total.runs) runs")
    }
    if isShown { BenchOutput.note("\r\u{1b}[K") }
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    print(json ? try Summary(seed, report, seconds).json : Self.text(report, seconds), terminator: json ? "\n" : "")
    guard report.total.violatedImages == 0 else {
      throw CrashCheckFailure(violated: report.total.violatedImages, images: report.total.images)
    }
  }

  private func run(log: String, base: String, command: String, _ seed: UInt64) throws {
    var options = LogCheckOptions(log: log, base: base, command: command, seed: seed)
    options.images = images ?? options.images
    options.folder = folder
    print("seed \(seed)")
    let isShown = isatty(STDERR_FILENO) == 1
    var check = try LogCheck(options)
    let report = try check.run { report in
      guard isShown else { return }
      BenchOutput.note("\r\u{1b}[K\(report.images) of \(options.images) images, \(report.violatedImages) with violations")
    }
    if isShown { BenchOutput.note("\r\u{1b}[K") }
    for violation in report.violations { print("violation: \(violation)") }
    print(
      "\(report.images) images of \(report.points) power failures in a log of \(report.entries) entries, \(report.flushes) of them "
        + "flushes; \(report.violatedImages) with violations")
    guard report.violatedImages == 0 else {
      throw CrashCheckFailure(violated: report.violatedImages, images: report.images)
    }
  }

  // MARK: Results

  private static func text(_ report: CrashReport, _ seconds: Double) -> String {
    let titles = ["mode", "engine", "runs", "requests", "flushes", "failures", "images", "violated"]
    func cells(_ mode: String, _ engine: String, _ figures: CrashFigures) -> [String] {
      [mode, engine]
        + [
          figures.runs, figures.requests, figures.flushes, figures.points, figures.images, figures.violatedImages,
        ].map { "\($0)" }
    }
    let rows =
      report.rows.map { cells($0.mode.rawValue, $0.engine.rawValue, $0.figures) } + [cells("all", "", report.total)]
    let widths = titles.indices.map { column in ([titles] + rows).map { $0[column].count }.max() ?? 0 }
    let lines = ([titles] + rows).map { row in
      row.enumerated().map { column, text in
        let gap = String(repeating: " ", count: widths[column] - text.count)
        return column < 2 ? text + gap : gap + text
      }.joined(separator: "  ")
    }
    var text = lines.joined(separator: "\n") + "\n"
    for violation in report.violations { text += "violation: \(violation)\n" }
    let total = report.total
    let tenths = (seconds * 10).rounded() / 10
    text +=
      "\(total.images) images of \(total.points) power failures in \(tenths) s (at \(total.exhaustivePoints) of these every subset), "
      + "\(total.violatedImages) with violations\n"
    return text
  }

  private struct Summary: Encodable {
    struct Row: Encodable {
      var mode: String
      var engine: String
      var runs: Int
      var requests: Int
      var flushes: Int
      var powerFailures: Int
      var exhaustive: Int
      var images: Int
      var violated: Int

      init(_ mode: String, _ engine: String, _ figures: CrashFigures) {
        self.mode = mode
        self.engine = engine
        runs = figures.runs
        requests = figures.requests
        flushes = figures.flushes
        powerFailures = figures.points
        exhaustive = figures.exhaustivePoints
        images = figures.images
        violated = figures.violatedImages
      }
    }

    var seed: UInt64
    var seconds: Double
    var rows: [Row]
    var total: Row
    var violations: [String]

    init(_ seed: UInt64, _ report: CrashReport, _ seconds: Double) {
      self.seed = seed
      self.seconds = seconds
      rows = report.rows.map { Row($0.mode.rawValue, $0.engine.rawValue, $0.figures) }
      total = Row("all", "all", report.total)
      violations = report.violations.map { "\($0)" }
    }

    var json: String {
      get throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return String(decoding: try encoder.encode(self), as: UTF8.self)
      }
    }
  }
}

/// Some images lack data that was promised to be stable.
struct CrashCheckFailure: Error, CustomStringConvertible {
  var violated: Int
  var images: Int
  var description: String {
    "\(violated) of \(images) images lack what was promised to be stable: the same --seed shows it again"
  }
}

extension CrashCheckFailure: ErrorWithStatus {
  var status: ExitStatus { .failure }
}

extension CrashCheckError: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .noScratch, .badLog: .image
    case .noEngine: .unavailable
    case .plantNeedsSync: .usage
    case .incompleteRecord: .failure
    }
  }
}
