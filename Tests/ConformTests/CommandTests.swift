/// `vmm-blk conform` as a user, or a CI, runs it.
import Foundation
import TestSupport
import Testing

@Suite struct CommandTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  @Test(
    "a signal during a run ends the back-end that it started, and removes its files", arguments: [SIGTERM])
  func interrupted(_ signal: Int32) throws {
    let note = directory.file("note")
    // It accepts and never answers, so the run is still going on.
    let backend = """
      import os, socket, sys
      listening = socket.socket(socket.AF_UNIX)
      listening.bind(sys.argv[1])
      listening.listen(8)
      open(sys.argv[2] + ".new", "w").write(f"{os.getpid()} {sys.argv[1]}")
      os.rename(sys.argv[2] + ".new", sys.argv[2])
      kept = []
      while True: kept.append(listening.accept()[0])
      """
    let script = directory.file("backend.py")
    try backend.write(toFile: script, atomically: true, encoding: .utf8)
    let program = try Program([
      "conform", "--patience", "3600", "--exec", "python3 '\(script)' {socket} '\(note)' & wait",
    ])
    try wait(until: "the back-end listens") { FileManager.default.fileExists(atPath: note) }
    let words = try String(contentsOfFile: note, encoding: .utf8).split(separator: " ")
    let backendProcess = try #require(Int32(words[0]))
    kill(program.process.processIdentifier, signal)
    #expect(program.finish().status == signal)
    #expect(program.process.terminationReason == .uncaughtSignal)
    try wait(until: "the back-end has ended") { kill(backendProcess, 0) != 0 }
    let folder = URL(fileURLWithPath: String(words[1])).deletingLastPathComponent().path
    #expect(!FileManager.default.fileExists(atPath: folder))
  }

  @Test("a report that cannot be written is an error before anything is checked", arguments: ["--junit", "--html"])
  func unwritable(_ option: String) throws {
    // Nothing serves the socket, which would otherwise be the error.
    let said = try Program(["conform", "--socket-path", directory.file("none"), option, "/nowhere/report"]).finish()
    #expect(said.status == 74, "\(said.errors)")
    #expect(said.errors == "Error: the report cannot be written to /nowhere/report: No such file or directory\n")
  }

  /// A report once replaced its target with a file: `/dev/stdout`, or `/dev/full`, was a device no more.
  @Test("a report to something other than a file does not replace it") func link() throws {
    let (link, target) = (directory.file("link"), directory.file("target"))
    try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: target)
    let said = try Program(["conform", "--self", "--only", "status-after-reset", "--html", link]).finish()
    #expect(said.status == 0, "\(said.errors)")
    #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link) == target)
    #expect(try String(contentsOfFile: target, encoding: .utf8).contains("status.1"))
    let full = directory.file("full")
    try FileManager.default.createSymbolicLink(atPath: full, withDestinationPath: "/dev/full")
    let lost = try Program(["conform", "--self", "--only", "status-after-reset", "--junit", full]).finish()
    #expect(lost.status == 74 && lost.output.contains("no MUST is broken"), "\(lost.errors)")
  }

  @Test("a run without a report leaves the last one, and does not wait for a pipe's reader") func keptReport() throws {
    let last = directory.file("last.xml")
    try "the last one".write(toFile: last, atomically: true, encoding: .utf8)
    let said = try Program(["conform", "--socket-path", directory.file("nobody"), "--junit", last]).finish()
    #expect(said.status == 69, "\(said.errors)")
    #expect(try String(contentsOfFile: last, encoding: .utf8) == "the last one")
    let pipe = directory.file("pipe")
    #expect(unsafe mkfifo(pipe, 0o600) == 0)
    let unread = try Program(["conform", "--self", "--only", "status-after-reset", "--html", pipe]).finish()
    #expect(unread.status == 74 && unread.output.isEmpty, "\(unread.output)\(unread.errors)")
    let good = try Program(["conform", "--self", "--only", "status-after-reset", "--junit", last]).finish()
    #expect(good.status == 0)
    #expect(try !String(contentsOfFile: last, encoding: .utf8).contains("the last one"))
  }

  @Test("the checks can be listed as JSON, all or some") func list() throws {
    let said = try Program(["conform", "--list", "--json", "--only", "suspend.12,blk.op.5"]).finish()
    let listed = try #require(JSONSerialization.jsonObject(with: Data(said.output.utf8)) as? [[String: Any]])
    #expect(listed.contains { $0["check"] as? String == "suspension-calls" })
    #expect(listed.allSatisfy { ($0["clauses"] as? [String])?.contains { ["suspend.12", "blk.op.5"].contains($0) } == true })
  }

  @Test("an empty selection does not mean everything", arguments: ["", ","])
  func emptySelection(_ words: String) throws {
    let said = try Program(["conform", "--list", "--only", words]).finish()
    #expect(said.status == 64 && said.errors.contains("--only names no check"), "\(said.output.prefix(100)) \(said.errors)")
  }

  @Test("a back-end that ends before it listens, and one that never listens, are unavailable")
  func noBackEnd() throws {
    for (command, words) in [
      ("exit 3", "ended before it listened"), ("exec sleep 100", "did not listen"),
      ("sleep 100 & exit 0", "ended before it listened"),
    ] {
      let said = try Program(["conform", "--patience", "1", "--exec", command]).finish()
      #expect(said.status == 69 && said.errors.contains(words), "\(said.errors)")
    }
  }

  /// The tool once made requests that a driver of that device must not make, and reported that the device broke IN_ORDER.
  @Test("a device that allows only small requests is not reported for refusing large ones") func smallLimits() throws {
    let serve =
      "exec '\(Program.path.path)' serve --socket-path {socket} --blk-file {disk} --features default,in_order,secure_erase "
      + "--config seg_max=2,size_max=4096,max_discard_sectors=64,max_write_zeroes_sectors=64,max_discard_seg=1"
    let said = try Program(["conform", "--exec", serve, "--only", "i.blk,blk.op,rfb.5,split,packed", "--all"]).finish()
    #expect(said.status == 0 && !said.output.contains(" broken "), "\(said.output)\(said.errors.suffix(500))")
    #expect(said.output.contains("bytes are more than a request can have: seg_max is 2, size_max 4096"), "\(said.output)")
  }

  /// With one queue the next request has the same head, and the answer to the longest chain was once taken for its answer.
  @Test("a device with one queue is not reported for a missing status after the longest chain") func oneQueue() throws {
    let serve = "exec '\(Program.path.path)' serve --socket-path {socket} --blk-file {disk} --num-queues 1"
    let said = try Program(["conform", "--exec", serve, "--only", "split.frame,packed.sg", "--all"]).finish()
    #expect(said.status == 0 && !said.output.contains(" broken "), "\(said.output)\(said.errors.suffix(500))")
    #expect(said.output.contains("served: status 0 [longest-chain]"), "\(said.output)")
  }

  /// Requests cut into more pieces once did not fit into rings made for few, and the tool failed on its own mistake.
  @Test("a device whose limits make chains long is checked to the end") func longChains() throws {
    let serve =
      "exec '\(Program.path.path)' serve --socket-path {socket} --blk-file {disk} --logical-block-size 4k --config size_max=8k"
    let said = try Program(["conform", "--exec", serve, "--only", "vu,bad,blk.op", "--all"]).finish()
    #expect(said.status == 0 && said.output.contains("no MUST is broken"), "\(said.output)\(said.errors.suffix(500))")
  }
}
