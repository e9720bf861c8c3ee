/// How much a serving process gives up, and what it reports about it.
public import ArgumentParser
internal import Glibc
public import Sandbox
internal import VirtioCore

extension SandboxMode: ExpressibleByArgument {}

struct SandboxOptions: ParsableArguments {
  @Option(
    help: .init(
      "Once everything is set up, give up the system calls, files and capabilities that serving does not need. With log, forbidden "
        + "calls only appear in the kernel's log."))
  var sandbox = SandboxMode.on

  /// Before the first thread.
  func arm() { Sandbox.arm(sandbox) }

  /// For one pass over data that may be hostile: nothing but its result is reported.
  ///
  /// - Parameters:
  ///   - paths: files and folders that are read afterwards.
  ///   - connects: the image is on a server.
  func enterQuietly(reading paths: [String], connects: Bool) {
    arm()
    var plan = SandboxPlan(sandbox)
    plan.connects = connects
    plan.places = (["/proc", "/sys"] + paths).map { AllowedPlace($0, for: .reading) }
    _ = Sandbox.enter(plan)
  }

  /// - Parameter plan: what is needed beside what every process that serves needs.
  func enter(_ plan: SandboxPlan, log: ServeLog) -> SandboxReport {
    var plan = plan
    // The log's local time, which is in a file.
    tzset()
    // What the kernel says about this process, about clocks and about devices.
    plan.places += ["/proc", "/sys"].map { AllowedPlace($0, for: .reading) }
    let report = Sandbox.enter(plan)
    switch report.mode {
    case .on: log.note("sandbox: \(report.words)")
    case .log: log.note("sandbox: \(report.words); what it would refuse is in the kernel's log, as audit records of type 1326")
    case .off: log.warn("the sandbox is off: an attacker who gains control of this process has all rights of its user")
    }
    for sentence in report.missing { log.warn("a part of the sandbox is missing: \(sentence)") }
    return report
  }
}

extension SandboxReport {
  /// The protections that hold, for readers.
  var words: String { parts.isEmpty ? "nothing is given up" : parts.joined(separator: ", ") }
}
