/// `vmm-blk ctl`: what an operator asks of a running server.
internal import ArgumentParser
internal import Control
internal import FoundationEssentials
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import VirtioCore

struct CtlCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ctl", abstract: "Monitor and change a running server.",
    usage: CtlTarget.usage("<verb> [<disk>] [<options>]"),
    discussion: """
      The server is a 'vmm-blk serve' or 'vmm-blk run' with --control <path>. A disk is named by its socket's or memory file's \
      path, or by its last component; if the server has only one disk, the name can be left out. VMM_BLK_CONTROL in the \
      environment stands for --control.

        vmm-blk ctl --control /run/disks.ctl list
        vmm-blk ctl --control /run/disks.ctl add blk-file=c.img socket-path=c.sock
        vmm-blk ctl --control /run/disks.ctl pause c.sock

      Docs/control.md describes the JSON protocol, for programs that use the socket directly.
      """,
    subcommands: [
      CtlList.self, CtlStatus.self, CtlAdd.self, CtlRemove.self, CtlReload.self, CtlFlush.self, CtlPause.self, CtlResume.self,
      CtlMetrics.self, CtlResize.self, CtlLimit.self, CtlLogLevel.self, CtlDrain.self,
    ])

  @OptionGroup var target: CtlTarget
}

/// Which server, and how to show its answers. Given before or after the verb.
struct CtlTarget: ParsableArguments {
  static func usage(_ verb: String) -> String { "vmm-blk ctl --control <path> " + verb }

  @Option(help: .init("The control socket of the server.", valueName: "path"))
  var control: String?

  @Flag(help: "Print the server's raw answer.")
  var json = false

  @Option(help: .init("How long to wait for the answer. (default: 60)", valueName: "seconds"))
  var timeout: Int?

  func validate() throws {
    if let timeout, !(1...86400).contains(timeout) {
      throw ValidationError("--timeout \(timeout) is not from 1 to 86400 seconds.")
    }
  }
}

extension CtlTarget {
  /// The path of the server's control socket.
  ///
  /// - Parameter given: the path on the command line.
  static func path(_ given: String?) throws -> String {
    if let given { return given }
    if let text = unsafe getenv("VMM_BLK_CONTROL") {
      guard let path = unsafe String(validatingCString: text) else {
        throw ValidationError("VMM_BLK_CONTROL is not UTF-8: use another path for the control socket, or a link to it")
      }
      if !path.isEmpty { return path }
    }
    throw ValidationError("no server: name its control socket with --control, or in VMM_BLK_CONTROL")
  }
}

/// A verb of `vmm-blk ctl`.
protocol CtlVerb: ParsableCommand {
  var ctl: CtlCommand { get }
  var target: CtlTarget { get }
}

extension CtlVerb {
  var printsJSON: Bool { target.json || ctl.target.json }

  /// Connects to the server and runs `body`.
  func withServer(_ body: (CtlSession) throws -> Void) throws {
    let path = try CtlTarget.path(target.control ?? ctl.target.control)
    try body(try CtlSession(path, patience: .seconds(target.timeout ?? ctl.target.timeout ?? 60), printsJSON: printsJSON))
  }

}

/// A connection to a server, for one request at a time.
final class CtlSession {
  private let path: String
  private let loop: EventLoop
  private let client: ControlClient
  private let patience: Duration
  private let printsJSON: Bool
  /// Answers about thousands of disks are longer than any request.
  static let maximumAnswer = 256 << 20

  init(_ path: String, patience: Duration, printsJSON: Bool) throws {
    self.path = path
    self.patience = patience
    self.printsJSON = printsJSON
    loop = try EventLoop()
    client = try ControlClient(path: path, in: loop, maximumAnswer: Self.maximumAnswer)
  }

  /// - Returns: the answer, unless it is a refusal, which is thrown.
  func ask<Answer: Decodable>(_ request: some Encodable, _ type: Answer.Type = Operator.Answer.self) throws -> Answer {
    var answer: Result<ControlLine, ControlError>?
    client.ask(ControlLine(request)) { [loop] result in
      answer = result
      loop.stop()
    }
    loop.after(patience) { [loop] in loop.stop() }
    if answer == nil { try loop.run() }
    guard let answer else { throw CtlFailure.silent(path, patience) }
    let line: ControlLine
    do { line = try answer.get() } catch { throw CtlFailure.control(path, error) }
    if printsJSON { print(String(decoding: line.text, as: UTF8.self)) }
    if let reason = try? line.decode(Operator.Answer.self).error { throw CtlFailure.refused(reason) }
    do throws(ControlError) { return try line.decode(type) } catch { throw CtlFailure.control(path, error) }
  }

  /// Prints a line for people; nothing with `--json`.
  func say(_ text: @autoclosure () -> String) {
    if !printsJSON { print(text()) }
  }
}

/// Why a request failed: one sentence.
enum CtlFailure: Error, CustomStringConvertible, ErrorWithStatus {
  case silent(String, Duration)
  case control(String, ControlError)
  case refused(String)
  case someRefused(Int)

  var description: String {
    switch self {
    case .silent(let path, let time): "the server at \(path) has not answered for \(time)"
    case .control(let path, .closed): "the server at \(path) has closed the connection, or this user may not connect"
    case .control(let path, let error): "the server at \(path) cannot be asked: \(error)"
    case .refused(let reason): "the server refuses: \(reason)"
    case .someRefused(let count): "\(count) \(count == 1 ? "disk" : "disks") refused"
    }
  }

  var status: ExitStatus {
    switch self {
    case .silent, .control: .unavailable
    case .refused, .someRefused: .failure
    }
  }
}

/// The disk that a verb applies to.
struct CtlDisk: ParsableArguments {
  @Argument(help: "The disk; may be omitted if there is only one.")
  var disk: String?

  /// As the server knows it.
  var name: String? { disk.map(Self.absolute) }

  /// The argument after the disk. Where the disk is omitted, it is the only word; a disk whose name reads like such an argument is
  /// named by its path.
  ///
  /// - Parameter given: the value, if it came after another word.
  mutating func next<Value: ExpressibleByArgument>(_ given: Value?) -> Value? {
    guard given == nil, let disk, let value = Value(argument: disk) else { return given }
    self.disk = nil
    return value
  }

  static func absolute(_ disk: String) -> String { disk.contains("/") ? Takeover.absolute(disk) : disk }
}
