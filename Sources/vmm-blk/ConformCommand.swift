/// `vmm-blk conform`: any virtio-blk device against the specification, clause by clause, without a virtual machine.
internal import ArgumentParser
internal import Conform
internal import Foundation
internal import Glibc
internal import GuestDriver
internal import OperatorWords

struct ConformCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "conform",
    abstract: "Check any virtio-blk device against the specification, clause by clause.",
    usage: """
      vmm-blk conform --socket-path <path> [<options>]
      vmm-blk conform --exec <command> [<options>]
      vmm-blk conform --memory <file> [<options>]
      vmm-blk conform --self [<options>]
      """,
    discussion: """
      The contents of the disk are overwritten. The device is already running, or --exec starts it; in its command {socket} stands \
      for the path where it has to listen and {disk} for a scratch image:

        vmm-blk conform --exec 'qemu-storage-daemon --blockdev file,node-name=d,filename={disk} \
      --export vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={socket}'

      Each check covers clauses of the specification, of the vhost-user protocol, or input that a device has to survive. The \
      outcomes are: kept; broken; rejected (forbidden input was not executed, and the device is alive); wedged (no answer to a \
      valid request afterwards); n/a, with the reason. A failed check is repeated once, alone, before it counts.

      The status is 1 if a MUST is broken or the device is dead. --list shows all checks, --only runs some of them.
      """)

  @Option(help: .init("The socket of a vhost-user-blk back-end.", valueName: "path")) var socketPath: String?
  @Option(help: .init("The shell command that starts a back-end.", valueName: "text")) var exec: String?
  @Option(help: .init("A memory file that 'vmm-blk run' serves.", valueName: "file")) var memory: String?
  @Flag(name: .customLong("self"), help: "This program's own device, over all its transports.") var own = false
  @Option(help: .init("Checks by name or clause, separated by commas: blk.op.5, status, loop.", valueName: "text"))
  var only: String?
  @Option(help: .init("Seed of the random choices. (default: 1)", valueName: "n")) var seed: UInt64?
  @Option(help: .init("How many seconds an answer may take before the device counts as hanging. (default: 20)", valueName: "n"))
  var patience: Int?
  @Option(help: .init("How many milliseconds to watch when nothing must happen. (default: 25)", valueName: "n"))
  var settle: Int?
  @Flag(help: "Show the checks and their clauses.") var list = false
  @Flag(help: "Show every clause, including those that are kept or do not apply.") var all = false
  @Flag(help: "Print JSON.") var json = false
  @Option(help: .init("Write a JUnit XML report to this file.", valueName: "file")) var junit: String?
  @Option(help: .init("Write an HTML report to this file.", valueName: "file")) var html: String?

  private var words: [String] { only.map { $0.split(separator: ",").map(String.init) } ?? [] }

  func validate() throws {
    let devices = [socketPath != nil, exec != nil, memory != nil, own].count { $0 }
    guard list || devices == 1 else {
      throw ValidationError("Name one device: --socket-path, --exec, --memory or --self.")
    }
    if only != nil, words.isEmpty { throw ValidationError("--only names no check and no clause; --list shows them.") }
    for word in words where !Check.all.contains(where: { $0.matches(word) }) {
      throw ValidationError("--only \(word) is neither a check nor a clause with a check; --list shows them.")
    }
    if let patience, !(1...3600).contains(patience) { throw ValidationError("--patience \(patience) is not from 1 to 3600.") }
    if let settle, !(1...10_000).contains(settle) { throw ValidationError("--settle \(settle) is not from 1 to 10000.") }
  }

  func run() throws {
    var settings = Settings()
    settings.seed = seed ?? settings.seed
    if let patience { settings.limit = .seconds(patience) }
    if let settle { settings.settle = .milliseconds(settle) }
    var runner = Runner(settings: settings, only: words)
    if list {
      if json {
        try show(runner.checks.map { ListedCheck(check: $0.name, clauses: $0.clauses, title: $0.title) })
      } else {
        for check in runner.checks { print("\(check.name)\n    \(check.clauses.joined(separator: " "))\n    \(check.title)") }
      }
      return
    }
    let (junitFile, htmlFile) = (try junit.map { try ReportFile($0) }, try html.map { try ReportFile($0) })
    try ConformWatch.begin()
    let isShown = isatty(STDERR_FILENO) == 1
    if isShown {
      runner.progress = { check, done, all in BenchOutput.note("\r\u{1b}[K\(done) of \(all): \(check)") }
    }
    let reports = try makeReports(runner, settings)
    if isShown { BenchOutput.note("\r\u{1b}[K") }
    if json { try show(Report.document(reports)) } else { print(Report.text(reports, isWhole: all)) }
    try junitFile?.write(Report.junit(reports))
    try htmlFile?.write(Report.html(reports))
    guard reports.allSatisfy(\.conforms) else {
      throw DoesNotConform(failures: reports.reduce(0) { $0 + $1.failures.count })
    }
  }

  private struct ListedCheck: Encodable {
    var check: String
    var clauses: [String]
    var title: String
  }

  private func show(_ document: some Encodable) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    print(String(decoding: try encoder.encode(document), as: UTF8.self))
  }

  private func makeReports(_ runner: Runner, _ settings: Settings) throws -> [Report] {
    if own { return try OwnSetup.all.map { try runner.run(OwnSubject($0)) } }
    if let memory { return [try runner.run(MemorySubject(path: memory))] }
    if let exec { return [try runner.run(ExecSubject(command: exec, settings: settings))] }
    return [try runner.run(SocketSubject(path: socketPath ?? ""))]
  }
}

extension ExecSubject.StartFailed: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}

/// The device breaks a MUST, or died.
struct DoesNotConform: ErrorWithStatus, CustomStringConvertible {
  var failures: Int
  var status: ExitStatus { .failure }
  var description: String {
    failures == 0
      ? "the device went away" : "\(failures) \(failures == 1 ? "check says" : "checks say") that the device does not conform"
  }
}
