/// `vmm-blk` in a process of its own, for tests of what people see of it.
public import Foundation

/// The program, built beside the tests. It does not outlive its test.
public final class Program: Sendable {
  public let process = Process()
  private let output = Pipe()
  private let errors = Pipe()

  /// Where it is.
  public static var path: URL {
    // The test runner and the program lie in the same directory.
    URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().appendingPathComponent("vmm-blk")
  }

  /// A command line whose options give way to those that are more important: no option may be given twice.
  ///
  /// - Parameter words: a verb, and options with a value each.
  public static func words(_ words: [String], overriddenBy more: [String]) -> [String] {
    var left: [String] = []
    var rest = words[...]
    while let word = rest.popFirst() {
      if word.hasPrefix("--"), more.contains(word) { _ = rest.popFirst() } else { left.append(word) }
    }
    return left + more
  }

  /// - Parameters:
  ///   - limit: what to say to the shell's `ulimit` before it starts; `nil` starts without a shell.
  ///   - program: another path of it, or another program.
  public init(
    _ arguments: [String], input: FileHandle = .nullDevice, limit: String? = nil, program: URL = Program.path
  ) throws {
    process.executableURL = limit == nil ? program : URL(fileURLWithPath: "/bin/sh")
    process.arguments = (limit.map { ["-c", "ulimit \($0) && exec \"$0\" \"$@\"", program.path] } ?? []) + arguments
    process.standardInput = input
    process.standardOutput = output
    process.standardError = errors
    try process.run()
  }

  deinit { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }

  /// The line that says that it serves; empty when it ends before.
  public func firstLine() -> String {
    var line: [UInt8] = []
    while let byte = output.fileHandleForReading.readData(ofLength: 1).first, byte != UInt8(ascii: "\n") {
      line.append(byte)
    }
    return String(decoding: line, as: UTF8.self)
  }

  /// Everything that it says on standard output, however much that is.
  public func everything() -> Data {
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return data
  }

  /// Waits for the end. What it says is short enough for the pipes to hold. What hangs is killed, and its status is that of the
  /// signal.
  public func finish() -> (status: Int32, output: String, errors: String) {
    if !eventually({ !process.isRunning }) { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
    return (process.terminationStatus, Self.text(output), Self.text(errors))
  }

  private static func text(_ pipe: Pipe) -> String {
    String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  }
}
