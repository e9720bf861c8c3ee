/// `--check-driver` as a user runs it: the program serves, a driver connects, and the report is there at the end.
import Foundation
import TestSupport
import Testing
import VirtioCore

@Suite struct CommandTests {
  /// A busy machine may delay a kick by any time.
  private static let patient = ["--check-driver-kick-limit", "\(Int(Patience.limit / .seconds(1)))"]

  let directory: TemporaryDirectory
  let memory: String
  let disk: String

  init() throws {
    directory = try TemporaryDirectory()
    memory = directory.file("guest.mem")
    disk = directory.file("disk.img")
    try Data(count: 4 << 20).write(to: URL(fileURLWithPath: disk))
  }

  private func end(_ program: Program) -> (status: Int32, output: String, errors: String) {
    kill(program.process.processIdentifier, SIGTERM)
    return program.finish()
  }

  private func device(_ report: String, _ options: [String] = []) throws -> Program {
    let device = try Program(
      ["run", "--memory", memory, "--create", "32M", "--blk-file", disk, "--check-driver=\(report)"] + Self.patient + options)
    #expect(device.firstLine().contains("Serving"))
    return device
  }

  @Test("a driver without a fault: status 0, and a report in each format", arguments: ["json", "xml", "html", "txt"])
  func sound(_ format: String) throws {
    let report = directory.file("report." + format)
    let device = try device(report, ["--features", "all"])
    let guest = try Program([
      "guest", "--memory", memory, "verify", "--bytes", "4M", "--largest", "64k", "--ring", "packed", "--features", "all",
    ]).finish()
    #expect(guest.status == 0, "\(guest.errors)")
    let said = end(device)
    #expect(said.status == 0, "\(said.errors)")
    #expect(said.errors.contains("no MUST is broken"), "\(said.errors)")
    let text = try String(contentsOfFile: report, encoding: .utf8)
    #expect(text.contains("d.packed.sg.3") && text.contains("d.blk.op.2"))
    guard format == "json" else { return }
    let root = try #require(JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    let first = try #require((root["devices"] as? [[String: Any]])?.first)
    #expect(first["conforms"] as? Bool == true && first["transport"] as? String == "mmio")
    let rules = try #require(first["rules"] as? [[String: Any]])
    let sector = try #require(rules.first { $0["id"] as? String == "d.packed.sg.3" })
    #expect(sector["outcome"] as? String == "kept" && (sector["kept"] as? Int ?? 0) > 200)
  }

  @Test("a driver that breaks a MUST: status 3, the rule, the moment and the bytes")
  func broken() throws {
    let report = directory.file("report.json")
    let device = try device(report, ["--num-queues", "2"])
    // The device checks do what no driver may.
    let conform = try Program(["conform", "--memory", memory, "--only", "blk.op,split.desc"])
    _ = conform.everything()
    let said = end(device)
    #expect(said.status == 3, "\(said.errors)")
    #expect(said.errors.contains("d.blk.op.2") && said.errors.contains("it must not break"), "\(said.errors)")
    #expect(try String(contentsOfFile: report, encoding: .utf8).contains("\"conforms\" : false"))
  }

  @Test("over vhost-user the rings are watched, and what only the front-end knows is reported as such")
  func socket() throws {
    let (socket, report) = (directory.file("sock"), directory.file("report.txt"))
    let device = try Program(["serve", "--socket-path", socket, "--blk-file", disk, "--check-driver=\(report)"] + Self.patient)
    #expect(device.firstLine().contains("Serving"))
    let guest = try Program(["guest", "--socket-path", socket, "verify", "--bytes", "4M", "--largest", "64k"]).finish()
    #expect(guest.status == 0, "\(guest.errors)")
    let said = end(device)
    #expect(said.status == 0 && said.errors.contains("no MUST is broken"), "\(said.errors)")
    #expect(try String(contentsOfFile: report, encoding: .utf8).contains("over vhost-user the front-end has them"))
  }

  @Test("one pass over a ring that a driver left behind")
  func once() throws {
    let device = try Program(["run", "--memory", memory, "--create", "32M", "--blk-file", disk])
    #expect(device.firstLine().contains("Serving"))
    #expect(try Program(["guest", "--memory", memory, "info"]).finish().status == 0)
    #expect(end(device).status == 0)
    let pass = try Program(["run", "--memory", memory, "--blk-file", disk, "--once", "--check-driver"] + Self.patient).finish()
    #expect(pass.errors.contains("the driver of"), "\(pass.output)\(pass.errors)")
  }

  @Test("one pass over an invalid ring: the status is for what the driver broke, even if the queue failed")
  func onceBroken() throws {
    var guest = Data(count: 1 << 16)
    // More became available than the ring has entries.
    (guest[0x102], guest[0x103]) = (0xff, 0xff)
    try guest.write(to: URL(fileURLWithPath: memory))
    let pass = try Program(
      [
        "run", "--memory", memory, "--blk-file", disk, "--once", "--raw", "--memory-base", "0", "--queue",
        "size=16,desc=0,avail=0x100,used=0x200", "--check-driver",
      ] + Self.patient
    ).finish()
    #expect(pass.status == 3, "\(pass.output)\(pass.errors)")
    #expect(pass.output.contains("queue 0 stopped") && pass.errors.contains("d.split.avail.1"), "\(pass.output)\(pass.errors)")
  }

  @Test("a report that cannot be written is an error before anything is served")
  func unwritable() throws {
    let said = try Program([
      "run", "--memory", memory, "--create", "1M", "--blk-file", disk, "--check-driver=/nowhere/report.json",
    ]).finish()
    #expect(said.status == 74 && said.errors.contains("/nowhere/report.json"), "\(said.errors)")
  }

  @Test("a report without a name is refused in the user's words") func unnamed() throws {
    let said = try Program(["serve", "--socket-path", directory.file("sock"), "--blk-file", disk, "--check-driver="]).finish()
    #expect(said.status == 64 && said.errors.contains("--check-driver= needs the name of a file"), "\(said.errors)")
    #expect(!said.errors.contains("--check-driver-file"), "\(said.errors)")
  }
}
