/// `vmm-blk` as a separate process, for tests of what its users see.
public import Foundation

/// The program, built beside the tests. It does not outlive its test.
public final class Program: Sendable {
  public let process = Process()
  private let output = Pipe()
  private let errors = Pipe()

  /// Its path.
  public static var path: URL {
    // The test runner and the program are in the same directory.
    URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().appendingPathComponent("vmm-blk")
  }

  /// A command line in which some options replace others, because no option may be given twice.
  ///
  /// - Parameter words: a verb, and options with one value each.
  public static func words(_ words: [String], overriddenBy more: [String]) -> [String] {
    var left: [String] = []
    var rest = words[...]
    while let word = rest.popFirst() {
      if word.hasPrefix("--"), more.contains(word) { _ = rest.popFirst() } else { left.append(word) }
    }
    return left + more
  }

  /// - Parameters:
  ///   - limit: arguments of the shell's `ulimit` before it starts; `nil`: started without a shell.
  ///   - program: its path, if it is another program.
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

  /// The line that tells that it serves; empty if it ends before that.
  public func firstLine() -> String {
    var line: [UInt8] = []
    while let byte = output.fileHandleForReading.readData(ofLength: 1).first, byte != UInt8(ascii: "\n") {
      line.append(byte)
    }
    return String(decoding: line, as: UTF8.self)
  }

  /// Its whole standard output, however long.
  public func everything() -> Data {
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return data
  }

  /// Waits for its end. Its output has to be short enough for the pipes' buffers. If it hangs it is killed, and the status is
  /// the signal's.
  public func finish() -> (status: Int32, output: String, errors: String) {
    if !eventually({ !process.isRunning }) { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
    return (process.terminationStatus, Self.text(output), Self.text(errors))
  }

  private static func text(_ pipe: Pipe) -> String {
    String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  }
}
