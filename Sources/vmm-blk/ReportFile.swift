/// A file that gets a report at the end of a run.
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VirtioCore

/// Opened at the start: a mistake is said before the run and not after it, and a process that is sandboxed meanwhile opens nothing.
/// Made empty when there is a report to write: a run without one leaves the last. Whatever the name stands for (a device, a link, a
/// pipe) is written to, and stays what it is.
final class ReportFile {
  let path: String
  private let file: OwnedDescriptor
  /// It is a file of its own, which a report fills from its beginning.
  private let isPlain: Bool

  init(_ path: String) throws {
    self.path = path
    // A pipe that nobody reads is a mistake, and nothing to wait for.
    var number = unsafe clinux_open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0o644)
    guard number >= 0 else { throw NotWritable(path: path, error: Errno(rawValue: errno)) }
    _ = clinux_fcntl_int(number, F_SETFL, 0)
    let isOutput = Self.isOutput(number)
    if isOutput {
      // Opened anew it would be written from its beginning, over what is there.
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

  /// Once.
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
