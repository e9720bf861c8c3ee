/// The rules themselves: none is left out, and none is checked without a driver that breaks it.
import Conform
import GuestDriver
import Testing
import VirtioCore
import VirtioRegisters

@testable import DriverCheck

@Suite struct TableTests {
  @Test("every rule has a check or a reason why no device can see it")
  func whole() {
    #expect(DriverRules.all.count { !$0.clause.id.hasPrefix("i.driver.") } == 231)
    #expect(Set(DriverRules.all.map(\.clause.id)).count == DriverRules.all.count)
    for rule in DriverRules.all {
      #expect(!rule.clause.words.isEmpty && !rule.clause.section.isEmpty)
      if case .unseen(let reason) = rule.sight { #expect(reason.count > 10, "\(rule.clause.id)") }
    }
  }

  @Test("every check catches a driver that breaks its rule")
  func caught() {
    // Rules that other tests cover: kicks, the start of a device, and notification data.
    let others =
      MutantTests.kickRules.flatMap { [$0.missing] + ($0.superfluous.map { [$0] } ?? []) }
      + ["d.split.align.1", "d.packed.align.1", "d.packed.desc.3"]
    let caught = Set(RingMutant.all.map(\.rule) + RegisterMutant.all.map(\.rule) + others)
    for rule in DriverRules.all {
      switch rule.sight {
      case .checked: #expect(caught.contains(rule.clause.id), "\(rule.clause.id) was never seen to be broken")
      case .unseen: #expect(!caught.contains(rule.clause.id), "\(rule.clause.id) is listed as unseen")
      }
    }
    for id in caught { #expect(DriverRules.places[id] != nil, "\(id) is not a rule") }
  }

  @Test("a report has a line for each rule, and shows what was seen where it is broken")
  func report() throws {
    let check = DriverCheck(name: "disk <1>")
    let rig = try RingRig(.split)
    rig.offer(try rig.request(4, sector: 1))
    try rig.serve()
    let report = DriverReport(device: "disk <1>", interface: .mmio, findings: rig.findings)
    #expect(report.rows.count == DriverRules.all.count)
    #expect(report.failures.map(\.clause.id) == ["d.blk.op.4"])
    let text = DriverReport.text([report], isWhole: false)
    #expect(text.contains("d.blk.op.4") && text.contains("a flush of sector 1") && text.contains("1 MUST broken"))
    #expect(text.contains("avail.ring[0], descriptor 0") && text.contains("04 00 00 00"))
    #expect(DriverReport.html([report]).contains("disk &lt;1&gt;"))
    #expect(DriverReport.junit([report]).contains("<failure type=\"broken\""))
    #expect(report.rows.allSatisfy { $0.outcome != .notApplicable || !$0.reason.isEmpty })
    #expect(check.report.failures.isEmpty && check.report.bus == "vhost-user")
  }
}
