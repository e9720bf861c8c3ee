/// The crash check with this project's device, which has to keep its promises, and with devices that do not.
import CrashCheck
import Foundation
import Testing
import VirtioBlkDevice

@Suite struct CrashCheckTests {
  /// A thousand images, over all modes and engines.
  @Test(arguments: CrashMode.allCases) func nothingPromisedIsLost(mode: CrashMode) throws {
    var options = CrashCheckOptions(seed: .random(in: 0 ... .max), images: 250)
    options.modes = [mode]
    var check = try CrashCheck(options)
    let report = try check.run()
    #expect(report.total.images >= 250)
    #expect(report.total.violatedImages == 0, "seed \(options.seed): \(report.violations)")
    // Each run has data that can be lost.
    #expect(report.total.images > report.total.points)
  }

  /// The order of operations does not depend on where the file is.
  @Test func inMemoryToo() throws {
    var options = CrashCheckOptions(seed: .random(in: 0 ... .max), images: 200)
    options.folder = "/dev/shm"
    options.modes = [.toggled]
    options.engines = [.mapped, .sync]
    var check = try CrashCheck(options)
    let report = try check.run()
    #expect(report.total.violatedImages == 0, "seed \(options.seed): \(report.violations)")
  }

  /// Modes in which each mistake shows.
  static let shows: [(PlantedMistake, CrashMode)] = [
    (.noFlush, .writeback), (.flushTooSoon, .writeback), (.wrongFile, .writeback), (.toggleIgnored, .toggled),
    (.toggleIgnored, .writethrough), (.toggleIgnored, .noFlush), (.answerTooSoon, .writeback),
    (.answerTooSoon, .writethrough), (.writeAfterFlush, .writeback), (.lostWrite, .writeback), (.lostWrite, .noFlush),
    (.shortWrite, .writeback), (.shortWrite, .toggled),
  ]

  @Test(arguments: shows) func plantedMistakesAreFound(mistake: PlantedMistake, mode: CrashMode) throws {
    var options = CrashCheckOptions(seed: .random(in: 0 ... .max), images: 10_000)
    options.modes = [mode]
    options.engines = [.sync]
    options.plant = mistake
    options.endsAtFirst = true
    var check = try CrashCheck(options)
    let report = try check.run()
    #expect(report.total.violatedImages > 0, "seed \(options.seed)")
    #expect(!report.violations.isEmpty)
  }

  @Test func allMistakesAreTried() {
    #expect(Set(Self.shows.map(\.0)) == Set(PlantedMistake.allCases))
  }

  @Test func whatCannotBeIsSaid() throws {
    var options = CrashCheckOptions(seed: 1, images: 1)
    options.plant = .noFlush
    #expect(throws: CrashCheckError.self) { try CrashCheck(options) }
    options.plant = nil
    options.folder = "/nowhere/at/all"
    var check = try CrashCheck(options)
    #expect(throws: CrashCheckError.self) { try check.run() }
  }
}

/// The command as a user runs it.
@Suite struct VerifyCrashCommandTests {
  private func run(_ arguments: String...) throws -> (status: Int32, output: String, errors: String) { try run(arguments) }

  private func run(_ arguments: [String]) throws -> (status: Int32, output: String, errors: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
      .appendingPathComponent("vmm-blk")
    process.arguments = ["verify-crash"] + arguments
    let (output, errors) = (Pipe(), Pipe())
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    defer { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }
    // Both outputs are short enough for a pipe's buffer.
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (
      process.terminationStatus, text, String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    )
  }

  @Test func passes() throws {
    let run = try run("--images", "100", "--seed", "7", "--engine", "sync")
    #expect(run.status == 0, "\(run)")
    #expect(run.output.hasPrefix("seed 7\nmode") && run.output.contains(" 0 with violations"), "\(run.output)")
  }

  @Test func findsWhatIsPlanted() throws {
    let run = try run("--images", "3000", "--plant", "no-flush", "--mode", "writeback", "--json")
    #expect(run.status == 1 && run.errors.contains("lack what was promised"), "\(run)")
    let report = try #require(try JSONSerialization.jsonObject(with: Data(run.output.utf8)) as? [String: Any])
    let total = try #require(report["total"] as? [String: Any])
    #expect(try #require(total["violated"] as? Int) > 0)
  }

  @Test(
    arguments: [
      (["--images", "0"], 64), (["--engine", "null"], 64), (["--plant", "no-flush", "--engine", "uring"], 64),
      (["--mode", "x"], 64), (["--folder", "/nowhere", "--images", "1"], 66),
    ] as [([String], Int32)])
  func mistakes(arguments: [String], status: Int32) throws {
    let run = try run(arguments)
    #expect(run.status == status && run.errors.hasPrefix("Error: "), "\(run)")
  }
}
