/// Where results go, and a line of progress on a terminal.
internal import ArgumentParser
internal import Bench
internal import CLinux
internal import Glibc
internal import SystemPackage

enum BenchOutput {
  /// To a file, or to standard output.
  static func write(_ text: String, to path: String?) throws {
    guard let path else {
      print(text, terminator: "")
      return
    }
    do {
      let file = try FileDescriptor.open(
        FilePath(path), .writeOnly, options: [.create, .truncate, .closeOnExec], permissions: .init(rawValue: 0o644))
      try file.closeAfter { _ = try file.writeAll(text.utf8) }
    } catch let error as Errno {
      throw ValidationError("\(path) cannot be written: \(error)")
    }
  }

  static func complain(_ text: String) { note("vmm-blk bench: \(text)\n") }

  /// Writes to standard error, without a prefix.
  static func note(_ text: String) { _ = try? FileDescriptor.standardError.writeAll(text.utf8) }
}

/// A progress line that is redrawn in place, on a terminal only.
struct BenchProgress {
  private let isShown = isatty(2) == 1
  private let repeats: Int

  init(repeats: Int) { self.repeats = repeats }

  func show(_ number: Int, _ progress: RunProgress) {
    guard isShown else { return }
    let percent = progress.total > 0 ? min(Int(progress.elapsed / progress.total * 100), 100) : 100
    let place = repeats > 1 ? "run \(number + 1) of \(repeats), " : ""
    note("\(place)\(percent) %, \(Int(progress.iops)) IOPS")
  }

  func note(_ text: String) { if isShown { BenchOutput.note("\r\u{1b}[K\(text)") } }
  func clear() { if isShown { BenchOutput.note("\r\u{1b}[K") } }
}
