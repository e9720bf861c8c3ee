/// Our own device, over everything that it can be reached by: no MUST is broken, and it lives through what no driver may send.
import Testing
import VirtioRegisters

@testable import Conform

@Suite struct OwnTests {
  @Test("no check fails on ours", arguments: OwnSetup.all)
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

  /// The device on a memory file once notified every driver when its queues started.
  @Test("a new driver is told of no used buffer before there is one") func idle() throws {
    let runner = Runner(only: ["interrupt-status-idle"])
    let report = try runner.run(OwnSubject(OwnSetup(.mmio)))
    #expect(report.findings.map(\.outcome) == [.kept], "\(report.findings.map(\.seen))")
  }
}
