/// What every command needs first: standard descriptors, signals, arguments, and output.
internal import CLinux
internal import Glibc
internal import Logging
internal import VirtioBlkDevice
internal import VirtioCore

enum Startup {
  /// The first thing that the program does.
  static func begin() {
    openMissingDescriptors()
    // A write to a reader that is gone, or beyond the limit of file sizes, fails with EPIPE or EFBIG instead of ending the
    // process.
    for number in [SIGPIPE, SIGXFSZ] { _ = signal(number, SIG_IGN) }
    _ = atexit { People.flush() }
    RBDSupport.whenLeftBehind { People.flush() }
  }

  /// Ignores signals that mean nothing to a server but end a program by default: from a closed terminal, or from supervisors
  /// that send them to other programs. Only for commands that serve; others end with their terminal.
  static func ignoreStraySignals() {
    for number in [SIGHUP, SIGUSR1, SIGUSR2] { _ = signal(number, SIG_IGN) }
  }

  /// If a program is started with standard input, output or error closed, the next files that it opens get these numbers: an
  /// image, for instance, and then the log is written into it.
  private static func openMissingDescriptors() {
    for number in Int32(0)...2 where clinux_fcntl_int(number, F_GETFD, 0) < 0 && errno == EBADF {
      // Both take the lowest free number, which is this one. If there is no /dev/null, a descriptor that can be neither read
      // nor written will do.
      if unsafe clinux_open("/dev/null", O_RDWR, 0) < 0 { _ = unsafe clinux_open("/", clinux_o_path, 0) }
    }
  }

  // MARK: Arguments

  /// The bytes of every argument, the program's name first, as the C start-up got them: Swift's own list comes from /proc, and
  /// is empty where that is not mounted.
  static let words: [[UInt8]] = {
    var words: [[UInt8]] = []
    while let word = unsafe clinux_argument(Int32(words.count)) {
      words.append(unsafe Array(UnsafeRawBufferPointer(start: word, count: strlen(word))))
    }
    return words
  }()

  /// The arguments without the program's name, with what is not UTF-8 repaired.
  static var arguments: [String] { words.dropFirst().map { String(decoding: $0, as: UTF8.self) } }

  // MARK: The end

  /// Prints the message, and exits with the status for it.
  static func end(_ end: CommandEnd) -> Never {
    if !end.text.isEmpty {
      if end.isMistake { People.error.write(end.text) } else { print(end.text) }
    }
    exit(end.status)
  }
}

/// Lines for the user, or for the log. Writing them never blocks the program.
enum People {
  static let output = LineWriter(descriptor: STDOUT_FILENO)
  static let error = LineWriter(descriptor: STDERR_FILENO) { LogLine.line(.warning, nil, "\($0) lines were dropped") }

  /// At the end of the program: gives a slow reader time for the last lines, but does not wait for one that is gone.
  static func flush() {
    let limit = ContinuousClock.now + .seconds(1)
    for writer in [output, error] { writer.flush(within: limit - .now) }
  }
}
