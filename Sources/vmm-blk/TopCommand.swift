/// `vmm-blk top`: shows the activity of a running server's disks, live.
internal import ArgumentParser
internal import Bench
internal import CLinux
internal import Control
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import VirtioCore

struct TopCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "top", abstract: "Watch the disks of a running server.",
    usage: "vmm-blk top --control <path> [<options>]",
    discussion: """
      The server is a 'vmm-blk serve' or 'vmm-blk run' with --control <path>; VMM_BLK_CONTROL in the environment stands for it. \
      The busiest disks come first; q quits. If standard output is not a terminal, the same lines are printed one after the other.

      r/s and w/s are requests per second, read and write bytes per second, and 'other' is all other requests (flushes, \
      discards). 'flight' is the number of requests in flight, p50 and p99 are the latencies of the last interval, and 'err' is \
      the number of requests answered with an error.
      """)

  @Option(help: .init("The control socket of the server.", valueName: "path"))
  var control: String?

  @Option(help: .init("The time between two updates.", valueName: "seconds"))
  var interval = 1.0

  @Option(help: .init("Exit after this many intervals. (default: never)", valueName: "n"))
  var count: Int?

  func validate() throws {
    guard (0.1...3600).contains(interval) else {
      throw ValidationError("--interval \(interval) is not from 0.1 to 3600 seconds.")
    }
    if let count, count < 1 { throw ValidationError("--count \(count) is less than 1.") }
  }

  func run() throws {
    // Before any other thread.
    let signals = try TerminationSignals([SIGTERM, SIGINT, SIGHUP])
    try Top(try CtlTarget.path(control), interval: .seconds(interval), count: count, signals).run()
  }
}

/// Polls the server, and shows the difference between two answers.
private final class Top {
  private let path: String
  private let loop: EventLoop
  private let client: ControlClient
  private let interval: Duration
  private let signals: TerminationSignals
  private var left: Int?
  private var screen: Screen?
  private var last: (metrics: Operator.Metrics, time: ContinuousClock.Instant)?
  private var failure: (any Error)?

  init(_ path: String, interval: Duration, count: Int?, _ signals: TerminationSignals) throws {
    self.path = path
    self.interval = interval
    self.signals = signals
    left = count
    loop = try EventLoop()
    client = try ControlClient(path: path, in: loop, maximumAnswer: CtlSession.maximumAnswer)
  }

  func run() throws {
    screen = Screen()
    defer { screen?.restore() }
    _ = try loop.add(signals.descriptor) { [self] _ in
      if signals.take() != nil { loop.stop() }
    }
    if screen != nil {
      _ = try loop.add(STDIN_FILENO) { [self] _ in
        if Screen.wantsToQuit() { loop.stop() }
      }
    }
    ask()
    try loop.run()
    if let failure { throw failure }
  }

  private func ask() {
    client.ask(ControlLine(Operator.Request(request: .metrics))) { [self] answer in
      do {
        let line = try answer.get()
        if let reason = try? line.decode(Operator.Answer.self).error { throw CtlFailure.refused(reason) }
        show(try line.decode(Operator.Metrics.self))
      } catch let error as ControlError {
        fail(CtlFailure.control(path, error))
      } catch { fail(error) }
    }
  }

  private func fail(_ error: any Error) {
    failure = error
    loop.stop()
  }

  private func show(_ metrics: Operator.Metrics) {
    let now = ContinuousClock.now
    if let last {
      let seconds = (now - last.time) / .seconds(1)
      let size = Screen.size
      let lines = TopTable.lines(
        from: last.metrics, to: metrics, seconds: seconds, width: screen == nil ? nil : size.columns,
        rows: screen == nil ? nil : size.rows)
      if screen == nil { print(lines.joined(separator: "\n") + "\n") } else { Screen.draw(lines) }
      fflush(nil)
      left = left.map { $0 - 1 }
      if left == 0 { return loop.stop() }
    } else if screen != nil {
      Screen.draw(["\(printable(metrics.process.program)): the first values appear after \(interval)"])
    }
    last = (metrics, now)
    loop.after(interval) { [self] in ask() }
  }
}

/// The terminal, taken over as a whole until `restore`.
private struct Screen {
  private let before: termios

  /// `nil`: there is none, or another program reads its keyboard.
  init?() {
    guard isatty(STDOUT_FILENO) == 1, isatty(STDIN_FILENO) == 1 else { return nil }
    var settings = termios()
    guard unsafe tcgetattr(STDIN_FILENO, &settings) == 0 else { return nil }
    before = settings
    // Keys are read one at a time and not echoed; Ctrl-C still sends a signal.
    settings.c_lflag &= ~tcflag_t(ICANON | ECHO)
    guard unsafe tcsetattr(STDIN_FILENO, TCSANOW, &settings) == 0 else { return nil }
    // Switch to the alternate screen, and hide the cursor.
    Self.write("\u{1b}[?1049h\u{1b}[?25l")
  }

  func restore() {
    Self.write("\u{1b}[?25h\u{1b}[?1049l")
    var settings = before
    _ = unsafe tcsetattr(STDIN_FILENO, TCSANOW, &settings)
  }

  /// Draws from the upper left corner on, replacing what was there.
  static func draw(_ lines: [String]) {
    write("\u{1b}[H" + lines.map { $0 + "\u{1b}[K" }.joined(separator: "\n") + "\u{1b}[J")
  }

  /// Reads what was typed. The end of the input ends the program, too.
  static func wantsToQuit() -> Bool {
    var keys = [UInt8](repeating: 0, count: 64)
    let count = unsafe read(STDIN_FILENO, &keys, keys.count)
    return count <= 0 || keys[..<count].contains { $0 == UInt8(ascii: "q") || $0 == UInt8(ascii: "Q") }
  }

  static var size: (columns: Int, rows: Int) {
    var size = winsize()
    guard unsafe ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0, size.ws_row > 0 else { return (80, 24) }
    return (max(Int(size.ws_col), 40), max(Int(size.ws_row), 5))
  }

  private static func write(_ text: String) {
    print(text, terminator: "")
    fflush(nil)
  }
}
