/// `--check-driver`: a device that also watches its driver, and the report at the end.
internal import ArgumentParser
internal import DriverCheck
internal import Foundation
internal import MemoryFile
internal import OperatorWords
internal import VirtioBlkDevice
internal import VirtioCore

struct DriverCheckOptions: ParsableArguments {
  @Flag(
    name: .customLong("check-driver"),
    help: .init(
      "Also watch the driver, and report at the end which rules of the specification it broke; the status is 3 if one of them was a "
        + "MUST. --check-driver=FILE writes the full report, as JSON, JUnit XML or HTML according to its extension, or as text."
    ))
  var checkDriver = false

  /// How `--check-driver=FILE` reaches the parser, for which an option either takes a value or does not.
  @Option(name: .customLong(Self.fileWord), help: .init("Where to write the report.", valueName: "file", visibility: .hidden))
  var checkDriverFile: String?

  @Option(
    name: .customLong("check-driver-kick-limit"),
    help: .init("How many seconds a required kick may take.", valueName: "seconds", visibility: .hidden))
  var checkDriverKickLimit = 10

  private static let fileWord = "check-driver-file"

  static func words(_ words: [String]) -> [String] {
    let prefix = "--check-driver="
    // Two words, because the parser rejects an empty value after an equals sign, and would name an option that nobody wrote.
    return words.flatMap { $0.hasPrefix(prefix) ? ["--\(fileWord)", String($0.dropFirst(prefix.count))] : [$0] }
  }

  func validate() throws {
    if let checkDriverFile, checkDriverFile.isEmpty { throw ValidationError("--check-driver= needs the name of a file.") }
    guard (1...86_400).contains(checkDriverKickLimit) else {
      throw ValidationError("--check-driver-kick-limit is a number of seconds from 1 to 86400.")
    }
  }

  /// It was requested.
  var isOn: Bool { checkDriver || checkDriverFile != nil }

  static let noTakeover = ValidationError(
    "--check-driver has to watch a driver from its start: leave out --check-driver or --take-over")

  /// - Returns: `nil` if it was not requested. - Throws: the file cannot be written.
  func begin() throws -> DriverChecks? {
    isOn ? try DriverChecks(file: checkDriverFile, kickLimit: .seconds(checkDriverKickLimit)) : nil
  }
}

/// The checks of all disks of a process. Used on the thread that serves.
final class DriverChecks {
  private let file: ReportFile?
  private let kickLimit: Duration
  private var checks: [DriverCheck] = []

  /// - Parameter kickLimit: how long a required kick may take.
  init(file path: String?, kickLimit: Duration) throws {
    self.kickLimit = kickLimit
    file = try path.map { try ReportFile($0) }
  }

  /// Wraps a device so that its driver is watched.
  ///
  /// - Parameter name: the disk's name in the report.
  func watch(_ device: BlockDevice, name: String) -> any VirtioDevice {
    let check = DriverCheck(name: printable(name), kickLimit: kickLimit)
    checks.append(check)
    return check.watch(device)
  }

  /// The same on a memory file, whose registers are watched as well.
  ///
  /// - Parameters:
  ///   - isNew: the file was just created, and no driver has used it.
  ///   - make: makes the transport of the device that it is given.
  func watch(
    _ device: BlockDevice, isNew: Bool, make: (any VirtioDevice) throws(MemoryFileError) -> MemoryFileDevice
  ) throws(MemoryFileError) -> MemoryFileDevice {
    let check = DriverCheck(name: printable(device.image.path), kickLimit: kickLimit)
    checks.append(check)
    let watched = check.watch(device)
    let transport = try make(watched)
    transport.registerWatch = check.registers(transport.file.layout.interface, of: watched, isNew: isNew)
    return transport
  }

  /// Reports what was observed. - Throws: a MUST was broken, or the report cannot be written.
  func finish() throws {
    let reports = checks.map(\.report)
    for line in DriverReport.text(reports, isWhole: false).split(separator: "\n") { People.error.write(String(line)) }
    if let file { try file.write(Self.contents(reports, file.path)) }
    let count = reports.reduce(0) { $0 + $1.failures.count }
    guard count == 0 else { throw DriverBroke(rules: count) }
  }

  private static func contents(_ reports: [DriverReport], _ path: String) throws -> String {
    switch path.split(separator: ".").last?.lowercased() {
    case "json":
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
      return String(decoding: try encoder.encode(DriverReport.document(reports)), as: UTF8.self) + "\n"
    case "xml": return DriverReport.junit(reports)
    case "html", "htm": return DriverReport.html(reports)
    default: return DriverReport.text(reports, isWhole: true) + "\n"
    }
  }
}

/// The driver broke a MUST.
struct DriverBroke: ErrorWithStatus, CustomStringConvertible {
  var rules: Int
  var status: ExitStatus { .driver }
  var description: String { "the driver broke \(rules) \(rules == 1 ? "rule" : "rules") that it must not break" }
}
