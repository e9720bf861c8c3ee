/// The book shows the program's real output: its commands are run again, and compared.
import Foundation
import TestSupport
import Testing

@Suite struct BookTests {
  private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  static let documents: [String] = {
    let book = root.appendingPathComponent("Docs/book")
    let chapters = (try? FileManager.default.contentsOfDirectory(atPath: book.path)) ?? []
    return chapters.filter { $0.hasSuffix(".md") && $0 != "README.md" }.sorted().map { "Docs/book/" + $0 }
      + ["images", "tracing", "zoned"].map { "Docs/\($0).md" }
  }()

  private static func python(
    _ arguments: [String], _ name: String = "book.py", program: String = Program.path.path
  ) throws -> (status: Int32, output: String) {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    let script = root.appendingPathComponent("Scripts/" + name).path
    process.arguments = ["VMM_BLK=\(program)", "python3", script] + arguments
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

  /// A document with other output is detected.
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

  /// Where output is not compared, a failing command is not a change, but still a failure.
  @Test func failedCommandsAreFound() throws {
    try withDirectory { directory in
      let path = directory + "/fails.md"
      let text = "<!-- run any\necho half; false\n-->\n```text\n$ echo half; true\nhalf\n```\n"
      try text.write(toFile: path, atomically: true, encoding: .utf8)
      for verb in ["check", "update"] {
        let (status, output) = try Self.python([verb, path])
        #expect(status != 0 && output.contains("'echo half; false' ended with 1") && !output.contains("1 changed"), "\(output)")
        #expect(output.contains("1 command failed"), "\(output)")
      }
      #expect(try String(contentsOfFile: path, encoding: .utf8) == text)
    }
  }

  /// No picture is drawn from a failed measurement.
  @Test func picturesNeedTheirMeasurements() throws {
    let (status, output) = try Self.python(["pictures"], program: "/bin/false")
    #expect(status != 0 && output.contains("book: 'timeout 60 vmm-blk bench"), "\(output)")
  }

  /// The libraries' reference is made from symbol graphs as the toolchain writes them.
  @Test func symbolsBecomeAReference() throws {
    try withDirectory { directory in
      let graph = #"""
        {"symbols": [
          {"kind": {"identifier": "swift.struct"}, "identifier": {"precise": "T"}, "pathComponents": ["Table"],
           "declarationFragments": [{"spelling": "struct "}, {"spelling": "Table"}],
           "docComment": {"lines": [{"text": "A table of `Entry`. And more."}]}},
          {"kind": {"identifier": "swift.enum"}, "identifier": {"precise": "E"}, "pathComponents": ["Entry"],
           "declarationFragments": [{"spelling": "enum Entry"}]},
          {"kind": {"identifier": "swift.method"}, "identifier": {"precise": "T.f"}, "pathComponents": ["Table", "find(_:)"],
           "declarationFragments": [{"spelling": "func find(_ key: Int)"}], "docComment": {"lines": [{"text": "Finds | it. - Returns: its place."}]}},
          {"kind": {"identifier": "swift.init"}, "identifier": {"precise": "E.i"}, "pathComponents": ["Entry", "init(rawValue:)"],
           "declarationFragments": [{"spelling": "init?(rawValue: Int)"}]},
          {"kind": {"identifier": "swift.property"}, "identifier": {"precise": "T.d"}, "pathComponents": ["Table", "description"],
           "declarationFragments": [{"spelling": "var description: String"}],
           "docComment": {"module": "Swift", "lines": [{"text": "A textual representation of this instance."}]}},
          {"kind": {"identifier": "swift.func"}, "identifier": {"precise": "g"}, "pathComponents": ["free()"],
           "declarationFragments": [{"spelling": "func free()"}]}
        ], "relationships": [
          {"kind": "memberOf", "source": "T.f", "target": "T"}, {"kind": "memberOf", "source": "T.d", "target": "T"},
          {"kind": "memberOf", "source": "E.i", "target": "E"},
          {"kind": "conformsTo", "source": "T", "target": "s:s8SendableP", "targetFallback": "Swift.Sendable"}
        ]}
        """#
      for name in ["VirtioCore", "VirtioBlkDevice", "VirtioBlkMetrics"] {
        try graph.write(toFile: "\(directory)/\(name).symbols.json", atomically: true, encoding: .utf8)
      }
      let (status, output) = try Self.python(["--graphs", directory, "--markdown", directory + "/out"], "symbols.py")
      #expect(status == 0, "\(output)")
      let page = try String(contentsOfFile: directory + "/out/VirtioCore.md", encoding: .utf8)
      for part in [
        "| [`Table`](#table) | A table of [`Entry`](#entry). |", "<a id=\"table\"></a>", "## Table", "struct Table",
        "Conforms to `Sendable`.", "**Methods**", "func find(_ key: Int)", "Finds | it.\n\n- Returns: its place.",
        "## Other declarations", "func free()", "var description: String",
      ] { #expect(page.contains(part), "\(part) is missing in \(page)") }
      #expect(!page.contains("textual representation"), "the standard library's comments are left out")
      #expect(!page.contains("rawValue"), "the compiler's initializers are left out")
      #expect(output.contains("VirtioCore: 3 of 5 symbols have no comment: Entry, Table.description, free()"), "\(output)")
      let missing = try Self.python(["--graphs", directory + "/nowhere", "--markdown", directory + "/out"], "symbols.py")
      #expect(missing.status != 0 && missing.output.contains("there is no"), "\(missing.output)")
    }
  }

  /// Every link in every document leads to a file, and to a heading in it.
  @Test func everyLinkLeadsSomewhere() throws {
    let (status, output) = try Self.python(["links"])
    #expect(status == 0, "\(output)")
  }

  /// The documents in a package link only to what the package contains: sources are named, examples are where they are
  /// installed.
  @Test func packagedDocumentsLinkOnlyToWhatIsShipped() throws {
    try withDirectory { directory in
      let (status, output) = try Self.python(["package", directory])
      #expect(status == 0, "\(output)")
      let pages = try FileManager.default.subpathsOfDirectory(atPath: directory).filter { $0.hasSuffix(".md") }
      #expect(pages.contains("README.md") && pages.contains("Docs/book/01-one-read.md"), "\(pages)")
      let shipped = ["changelog.gz", "copyright", "examples/driver.py", "examples/domain.xml", "examples/example.json"]
      try FileManager.default.createDirectory(atPath: directory + "/examples", withIntermediateDirectories: true)
      for name in shipped { try "".write(toFile: "\(directory)/\(name)", atomically: true, encoding: .utf8) }
      let whole = try Self.python(["links"] + pages.map { "\(directory)/\($0)" })
      #expect(whole.status == 0, "\(whole.output)")
      try FileManager.default.removeItem(atPath: directory + "/examples/domain.xml")
      let missing = try Self.python(["links", directory + "/Docs/operating.md"])
      #expect(missing.status != 0 && missing.output.contains("there is no ../examples/domain.xml"), "\(missing.output)")
    }
  }

  @Test func deadLinksAreFound() throws {
    try withDirectory { directory in
      let path = directory + "/links.md"
      try "let a = 1\nlet b = 2\n".write(toFile: directory + "/lines.swift", atomically: true, encoding: .utf8)
      let text = """
        # One `word`, and more

        ## Again

        ## Again

        ## Again

        [a](#one-word-and-more) [b](links.md#one) [c](gone.md) [e](titled.md "which is not there") [f](links.md "which is")
        [g](#again) [h](#again-1) [i](#again-2) [j](#again-3)
        [k](lines.swift#L2) [l](lines.swift#L1-L2) [m](lines.swift#L9) [n](../\(directory.split(separator: "/").last ?? "")#folder)

        `[d](code.md)`

        """
      try text.write(toFile: path, atomically: true, encoding: .utf8)
      let (status, output) = try Self.python(["links", path])
      #expect(status != 0, "\(output)")
      let dead = output.split(separator: "\n").compactMap { $0.split(separator: " ").last.map(String.init) }.dropFirst()
      #expect(
        dead.map { $0.hasSuffix("#folder") ? "#folder" : $0 }
          == ["links.md#one", "gone.md", "titled.md", "#again-3", "lines.swift#L9", "#folder"], "\(output)")
    }
  }

  /// Pages can be read offline: their links lead to each other, and they load nothing.
  @Test func pagesThatAreNotWholeAreFound() throws {
    try withDirectory { directory in
      let empty = try Self.python(["pages", directory])
      #expect(empty.status != 0 && empty.output.contains("there are no pages"), "\(empty.output)")
      let path = directory + "/page.html"
      try "<h1 id=\"top\">a</h1><a href=\"page.html#top\">b</a><a href=\"https://example.org\">c</a>".write(
        toFile: path, atomically: true, encoding: .utf8)
      #expect(try Self.python(["pages", directory]).status == 0)
      try "<a href=\"#bottom\">b</a><a href=\"gone.html\">c</a><img src=\"https://example.org/a.png\">".write(
        toFile: path, atomically: true, encoding: .utf8)
      let (status, output) = try Self.python(["pages", directory])
      #expect(status != 0, "\(output)")
      for part in ["no place for #bottom", "there is no gone.html", "loads https://example.org/a.png"] {
        #expect(output.contains(part), "\(output)")
      }
    }
  }
}
