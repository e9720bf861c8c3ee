/// Where results go, and a line of progress on a terminal.
internal import ArgumentParser
internal import Bench
internal import CLinux
internal import Glibc

enum BenchOutput {
  /// To a file, or to standard output.
  static func write(_ text: String, to path: String?) throws {
    guard let path else {
      print(text, terminator: "")
      return
    }
    let file = unsafe fopen(path, "we")
    guard let file = unsafe file else {
      throw ValidationError("\(path) cannot be written: \(unsafe String(cString: strerror(errno))).")
    }
    defer { unsafe fclose(file) }
    guard unsafe fputs(text, file) >= 0, unsafe fflush(file) == 0 else {
      throw ValidationError("\(path) cannot be written: \(unsafe String(cString: strerror(errno))).")
    }
  }

  static func complain(_ text: String) { unsafe _ = fputs("vmm-blk bench: \(text)\n", stderr) }
}

/// One line that is written over, on a terminal only.
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

  func note(_ text: String) { if isShown { unsafe _ = fputs("\r\u{1b}[K\(text)", stderr) } }
  func clear() { if isShown { unsafe _ = fputs("\r\u{1b}[K", stderr) } }
}
