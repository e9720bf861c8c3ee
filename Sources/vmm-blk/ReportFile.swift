/// A file that receives a report at the end of a run.
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VirtioCore

/// Opened at the start, so that a mistake is reported before the run, and because a process in its sandbox cannot open it. It
/// is truncated only when there is a report to write, so a run without one keeps the previous report. A device, a link or a
/// pipe is written to and stays what it is.
final class ReportFile {
  let path: String
  private let file: OwnedDescriptor
  /// It is a regular file and not standard output, so a report replaces its contents.
  private let isPlain: Bool

  init(_ path: String) throws {
    self.path = path
    // A pipe without a reader is a mistake, so do not wait for one.
    var number = unsafe clinux_open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0o644)
    guard number >= 0 else { throw NotWritable(path: path, error: Errno(rawValue: errno)) }
    _ = clinux_fcntl_int(number, F_SETFL, 0)
    let isOutput = Self.isOutput(number)
    if isOutput {
      // A second open file description would write from the beginning, over what is already there.
      close(number)
      number = clinux_fcntl_int(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0)
      guard number >= 0 else { throw NotWritable(path: path, error: Errno(rawValue: errno)) }
    }
    file = OwnedDescriptor(number)
    isPlain = !isOutput && Self.status(number).map { $0.st_mode & S_IFMT == S_IFREG } ?? false
  }

  private static func status(_ descriptor: Int32) -> stat? {
    var status = stat()
    return unsafe fstat(descriptor, &status) == 0 ? status : nil
  }

  private static func isOutput(_ descriptor: Int32) -> Bool {
    guard let one = status(descriptor), let other = status(STDOUT_FILENO) else { return false }
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino
  }

  /// Call it once.
  func write(_ text: String) throws {
    if isPlain, ftruncate(file.rawValue, 0) != 0 { throw NotWritable(path: path, error: Errno(rawValue: errno)) }
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(file.rawValue, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { throw NotWritable(path: path, error: Errno(rawValue: errno)) }
      rest = rest.dropFirst(count)
    }
  }

  struct NotWritable: ErrorWithStatus, CustomStringConvertible {
    var path: String
    var error: Errno
    var status: ExitStatus { .io }
    var description: String { "the report cannot be written to \(printable(path)): \(error)" }
  }
}
