/// Counts the system calls of another process with perf, if it is installed and allowed.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// A running `perf stat`.
final class SystemCallCounter {
  private let perf: pid_t
  private let output: String
  private let start: UInt64

  /// - Returns: `nil` if perf is not available.
  init?(process: Int32) {
    var template = Array("/tmp/vmm-blk-perf-XXXXXX".utf8CString)
    let file = unsafe mkstemp(&template)
    guard file >= 0 else { return nil }
    close(file)
    output = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let words = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-o", output, "-p", "\(process)"]
    let arguments = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>.allocate(capacity: words.count + 1)
    for (index, word) in words.enumerated() { unsafe (arguments + index).initialize(to: strdup(word)) }
    unsafe (arguments + words.count).initialize(to: nil)
    defer {
      for index in words.indices { unsafe free(arguments[index]) }
      unsafe arguments.deallocate()
    }
    // Keep perf's own messages out of this program's output.
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
    var child = pid_t()
    guard unsafe posix_spawnp(&child, "perf", &actions, nil, arguments, Glibc.environ) == 0 else {
      unsafe unlink(output)
      return nil
    }
    perf = child
    start = Clock.now
  }

  /// Ends the counting.
  /// - Returns: system calls per second; `nil` if perf was not allowed to count.
  func stop() -> Double? {
    kill(perf, SIGINT)
    var status: Int32 = 0
    while unsafe waitpid(perf, &status, 0) < 0, errno == EINTR {}
    let seconds = Double(Clock.now - start) / 1e9
    defer { unsafe unlink(output) }
    for line in (ProcessFiles.text(output) ?? "").split(separator: "\n") where line.contains("sys_enter") {
      if let count = line.split(separator: ",").first.flatMap({ Double($0) }), seconds > 0 { return count / seconds }
    }
    return nil
  }
}
