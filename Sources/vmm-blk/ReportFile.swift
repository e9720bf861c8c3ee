/// A file that gets a report at the end of a run.
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VirtioCore

/// Opened, and made empty, at the start: a mistake is said before the run and not after it, and a process that is sandboxed
/// meanwhile opens nothing. Whatever the name stands for (a device, a link, a pipe) is written to, and stays what it is.
final class ReportFile {
  let path: String
  private let file: OwnedDescriptor

  init(_ path: String) throws {
    self.path = path
    let number = unsafe clinux_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard number >= 0 else { throw NotWritable(path: path, error: Errno(rawValue: errno)) }
    file = OwnedDescriptor(number)
  }

  func write(_ text: String) throws {
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
