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

  /// Call it before the first thread is created.
  func arm() { Sandbox.arm(sandbox) }

  /// Enters the sandbox without a report, for one pass over data that may be hostile.
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

  /// - Parameter plan: what this process needs in addition to what every serving process needs.
  func enter(_ plan: SandboxPlan, log: ServeLog) -> SandboxReport {
    var plan = plan
    // Read the time zone now: the log needs it, and it is in a file.
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
  /// The protections in force, for messages.
  var words: String { parts.isEmpty ? "nothing is given up" : parts.joined(separator: ", ") }
}
