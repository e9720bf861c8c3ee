/// The progress of a command on an image, as qemu-img shows it.
internal import Glibc

/// A percentage on standard error, redrawn in place; nothing is shown if that is not a terminal.
final class ImageProgress {
  private let isShown: Bool
  private var shown = -1

  init(isWanted: Bool) { isShown = isWanted && isatty(STDERR_FILENO) == 1 }

  func show(_ done: UInt64, of size: UInt64) {
    guard isShown, size > 0 else { return }
    let percent = Int(Double(done) / Double(size) * 100)
    guard percent != shown else { return }
    BenchOutput.note("\r\u{1b}[K(\(percent)/100%)")
    shown = percent
  }

  deinit { if isShown, shown >= 0 { BenchOutput.note("\n") } }
}
