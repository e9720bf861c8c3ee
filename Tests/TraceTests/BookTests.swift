/// What the book shows is what the program says: its commands are run again, and compared.
import Foundation
import TestSupport
import Testing

@Suite struct BookTests {
  private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  static let documents: [String] = {
    let book = root.appendingPathComponent("Docs/book")
    let chapters = (try? FileManager.default.contentsOfDirectory(atPath: book.path)) ?? []
    return chapters.filter { $0.hasSuffix(".md") && $0 != "README.md" }.sorted().map { "Docs/book/" + $0 } + ["Docs/tracing.md"]
  }()

  private static func python(_ arguments: [String]) throws -> (status: Int32, output: String) {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    let script = root.appendingPathComponent("Scripts/book.py").path
    process.arguments = ["VMM_BLK=\(Program.path.path)", "python3", script] + arguments
    process.currentDirectoryURL = root
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, text)
  }

  @Test(arguments: documents) func everyOutputIsWhatTheProgramSays(_ document: String) throws {
    let (status, output) = try Self.python(["check", document])
    #expect(status == 0, "\(output)")
  }

  /// A document that says something else is found out.
  @Test func somethingElseIsFound() throws {
    try withDirectory { directory in
      let path = directory + "/lie.md"
      let text = "<!-- run\nvmm-blk --version | cut -c1-7\n-->\n```text\n$ vmm-blk --version | cut -c1-7\nlies\n```\n"
      try text.write(toFile: path, atomically: true, encoding: .utf8)
      let (status, output) = try Self.python(["check", path])
      #expect(status != 0 && output.contains("-lies"), "\(output)")
      #expect(try Self.python(["update", path]).status == 0)
      #expect(try Self.python(["check", path]).status == 0)
    }
  }

  /// Files that the documents point to are there.
  @Test(arguments: documents + ["Docs/book/README.md", "Docs/control.md"])
  func everyLinkLeadsSomewhere(_ document: String) throws {
    let file = Self.root.appendingPathComponent(document)
    let text = try String(contentsOf: file, encoding: .utf8)
    for match in text.matches(of: /\]\(([^)#:\s]+)(#[^)]*)?\)/) {
      let target = file.deletingLastPathComponent().appendingPathComponent(String(match.1)).standardizedFileURL
      #expect(FileManager.default.fileExists(atPath: target.path), "\(document): \(match.1)")
    }
  }
}
