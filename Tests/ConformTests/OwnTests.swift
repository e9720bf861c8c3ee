/// This project's device, over every transport: no MUST is broken, and it survives what no driver may send.
import Foundation
import GuestDriver
import Testing
import VirtioRegisters

@testable import Conform

@Suite struct OwnTests {
  @Test("no check fails on this project's device", arguments: OwnSetup.all)
  func own(_ setup: OwnSetup) throws {
    var settings = Settings()
    settings.limit = .seconds(110)
    settings.settle = .milliseconds(5)
    let report = try Runner(settings: settings).run(OwnSubject(setup))
    #expect(report.isComplete)
    for finding in report.findings where finding.outcome.isFailure {
      Issue.record(
        "\(finding.check), \(finding.ring), \(finding.clauses.joined(separator: " ")): \(finding.outcome) \(finding.seen)")
    }
  }

  /// Zone state files once stayed in /tmp, four folders of them for each run of `conform --self`.
  @Test("a device leaves no file behind", arguments: OwnSetup.all) func tidy(_ setup: OwnSetup) throws {
    var device: OwnDevice? = try OwnDevice(setup)
    let folder = URL(fileURLWithPath: try #require(device).path).deletingLastPathComponent().path
    #expect(FileManager.default.fileExists(atPath: folder))
    device = nil
    #expect(!FileManager.default.fileExists(atPath: folder))
  }

  /// Linux's structure of a sector and a status is padded to 16 bytes. The sector was once put directly before the status, and
  /// btrfs lost the data that it had appended.
  @Test(
    "an append's sector is at the front of the writable part, where Linux expects it",
    arguments: [OwnSetup(nil, zones: .zoned), OwnSetup(.pci, zones: .zoned)])
  func paddedAppend(_ setup: OwnSetup) throws {
    let subject = try OwnSubject(setup)
    let bench = Bench(subject, try Runner().facts(subject), .split, Settings(), name: "append")
    try bench.start(Plan(queues: 1))
    // The first zone after the conventional ones.
    var request = BlockRequest.append(zone: 4096, [UInt8](repeating: 7, count: 4096))
    request.answerBytes = 15
    let answer = try bench.perform(request)
    #expect(answer.status == 0, "\(answer.words)")
    #expect(answer.data == [0, 16, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: Posted.poison, count: 7))
    bench.close()
  }

  /// The device on a memory file once notified every driver when its queues started.
  @Test("a new driver gets no used buffer notification before there is one") func idle() throws {
    let runner = Runner(only: ["interrupt-status-idle"])
    let report = try runner.run(OwnSubject(OwnSetup(.mmio)))
    #expect(report.findings.map(\.outcome) == [.kept], "\(report.findings.map(\.seen))")
  }
}
