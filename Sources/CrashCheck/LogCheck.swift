/// Makes the images that a power failure could leave of a logged disk, and lets a program judge each.
internal import Foundation
internal import GuestDriver

public struct LogCheckOptions: Sendable {
  /// In the format of dm-log-writes.
  public var log: String
  /// The contents of the disk when the log began; the disk has the size of this file.
  public var base: String
  /// A shell command; `$1` is the image, which it may change. Status 0 means that the image is good.
  public var command: String
  public var images = 200
  public var seed: UInt64
  /// Where images are made.
  public var folder = "/var/tmp"

  public init(log: String, base: String, command: String, seed: UInt64) {
    self.log = log
    self.base = base
    self.command = command
    self.seed = seed
  }
}

/// The result of a check.
public struct LogCheckReport: Sendable {
  public var entries = 0
  public var flushes = 0
  /// Moments at which the power failed.
  public var points = 0
  public var images = 0
  /// What the program printed about the first few bad images.
  public var violations: [String] = []
  public var violatedImages = 0
}

public struct LogCheck {
  private static let imagesPerPoint = 4
  private static let sector: UInt64 = 512

  private let options: LogCheckOptions
  private let log: WriteLog
  private var random: SeededRandom

  /// - Throws: the log is invalid, or not of this disk.
  public init(_ options: LogCheckOptions) throws {
    self.options = options
    random = SeededRandom(seed: options.seed)
    guard let size = try? FileManager.default.attributesOfItem(atPath: options.base)[.size] as? UInt64 else {
      throw CrashCheckError.badLog(path: options.base, "the contents of the disk before the log cannot be read")
    }
    log = try WriteLog(path: options.log, size: size)
  }

  /// - Parameter progress: called after each image.
  public mutating func run(progress: (LogCheckReport) -> Void = { _ in }) throws -> LogCheckReport {
    let folder = options.folder + "/vmm-blk-log-" + UUID().uuidString
    do { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false) } catch {
      throw CrashCheckError.noScratch(path: options.folder, reason: "a folder cannot be created there")
    }
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let (stable, image) = (folder + "/stable", folder + "/image")
    try copy(options.base, to: stable)
    var report = LogCheckReport()
    report.entries = log.entries.count
    report.flushes = log.entries.count(where: \.isFlush)
    let count = max(1, options.images / Self.imagesPerPoint)
    var moments = (0..<count).map { _ in Int(random.next() % UInt64(log.entries.count + 1)) }
    // The end of the log is always one of them.
    moments[0] = log.entries.count
    var done = 0
    for moment in moments.sorted() {
      let flushed = (log.entries[..<moment].lastIndex(where: \.isFlush) ?? -1) + 1
      if flushed > done {
        try withFile(stable) { file in for entry in log.entries[done..<flushed] { try write(entry, to: file) } }
        done = flushed
      }
      report.points += 1
      for number in 0..<Self.imagesPerPoint {
        try copy(stable, to: image)
        try withFile(image) { file in for entry in log.entries[done..<moment] { try fail(entry, number, file) } }
        report.images += 1
        if let complaint = try judge(image) {
          report.violatedImages += 1
          if report.violations.count < CrashReport.violationLimit {
            report.violations.append("power failed after entry \(moment), image \(number): \(complaint)")
          }
        }
        progress(report)
      }
    }
    return report
  }

  /// What is left of an entry that is not flushed: in the first image nothing, in the second all, else any of its sectors.
  private mutating func fail(_ entry: WriteLog.Entry, _ number: Int, _ file: FileHandle) throws {
    if entry.isStable || number == 1 { return try write(entry, to: file) }
    guard number > 1 else { return }
    switch random.next() % 3 {
    case 0: return
    case 1: try write(entry, to: file)
    default:
      var place: UInt64 = 0
      while place < entry.length {
        let end = min(place + Self.sector, entry.length)
        if random.next() % 2 == 0 { try write(entry, place..<end, to: file) }
        place = end
      }
    }
  }

  private func write(_ entry: WriteLog.Entry, to file: FileHandle) throws {
    // A discard may be as long as the disk.
    var place: UInt64 = 0
    while place < entry.length {
      let end = min(place + 1 << 20, entry.length)
      try write(entry, place..<end, to: file)
      place = end
    }
  }

  private func write(_ entry: WriteLog.Entry, _ range: Range<UInt64>, to file: FileHandle) throws {
    try file.seek(toOffset: entry.offset + range.lowerBound)
    try file.write(contentsOf: log.bytes(entry, range))
  }

  private func withFile(_ path: String, _ body: (FileHandle) throws -> Void) throws {
    guard let file = FileHandle(forUpdatingAtPath: path) else {
      throw CrashCheckError.noScratch(path: path, reason: "it cannot be opened")
    }
    try body(file)
    try file.close()
  }

  private func copy(_ source: String, to path: String) throws {
    let (status, output) = try Self.run("/bin/cp", ["--sparse=always", "--reflink=auto", source, path])
    guard status == 0 else { throw CrashCheckError.noScratch(path: path, reason: output) }
  }

  /// - Returns: what the program printed, if it rejected the image.
  private func judge(_ image: String) throws -> String? {
    let (status, output) = try Self.run("/bin/sh", ["-c", options.command, "check", image])
    return status == 0 ? nil : "status \(status): " + output.suffix(400).replacing("\n", with: " ")
  }

  private static func run(_ program: String, _ arguments: [String]) throws -> (Int32, String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    let output = Pipe()
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = output
    try process.run()
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: data, as: UTF8.self))
  }
}
