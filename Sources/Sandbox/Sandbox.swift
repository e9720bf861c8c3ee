/// A process that serves disks gives up what it does not need for that.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// How much is given up.
public enum SandboxMode: String, CaseIterable, Sendable {
  case on
  /// System calls that would end the process are done, and are in the kernel's log; files and capabilities stay as they are.
  case log
  case off
}

/// What a process still needs when everything is set up.
public struct SandboxPlan: Sendable {
  public var mode: SandboxMode
  /// Files that may be opened, and folders with what is below them.
  public var places: [AllowedPlace] = []
  /// Figures are shown at an address of the Internet's protocols.
  public var usesInternet = false
  /// Images are on servers that are connected to by the Internet's protocols.
  public var connects = false
  /// Disks come and go, and their images and sockets belong to others: what the process has of the right to pass over owners and
  /// modes of files, and to give sockets to groups, stays with the thread that opens them, within `places`.
  public var opensForOthers = false

  public init(_ mode: SandboxMode) { self.mode = mode }
}

/// What was given up, and what could not be.
public struct SandboxReport: Sendable {
  public let mode: SandboxMode
  /// System calls are filtered.
  public fileprivate(set) var filtersCalls = false
  /// Version of Landlock; `nil`: whatever the process's user may open can be opened.
  public fileprivate(set) var fileAccess: Int?
  /// Capabilities are given up.
  public fileprivate(set) var dropsCapabilities = false
  /// No program that is started could get more rights.
  public fileprivate(set) var hasNoNewPrivileges = false
  /// A sentence for each protection that the kernel does not have, or does not give.
  public fileprivate(set) var missing: [String] = []

  /// Nothing is given up.
  public static let off = SandboxReport(mode: .off)

  fileprivate init(mode: SandboxMode) { self.mode = mode }

  /// The protections that hold, in words.
  public var parts: [String] {
    guard mode != .off else { return [] }
    var parts: [String] = []
    if filtersCalls { parts.append(mode == .log ? "system calls (logged only)" : "system calls") }
    if fileAccess != nil { parts.append("files") }
    if dropsCapabilities { parts.append("capabilities") }
    if hasNoNewPrivileges { parts.append("no new privileges") }
    return parts
  }
}

public enum Sandbox {
  /// Threads that begin their work from now on give up what their kind does not need. Before the first of them.
  ///
  /// - Parameter mode: that `enter` will be called with.
  public static func arm(_ mode: SandboxMode) {
    guard mode != .off else { return }
    // Now: a thread that needs one may be made by one that can compile nothing any more.
    var filters: [ThreadRole: CallFilter] = [:]
    for role in ThreadRole.allCases {
      filters[role] = try? CallFilter(
        allowing: SystemCalls.of(role), refusing: SystemCalls.refused(of: role), kills: mode == .on)
    }
    ThreadRole.whenOneBegins { [filters] role in
      // Whatever cannot be given up was said when the process did.
      guard clinux_no_new_privileges() == 0 else { return }
      if mode == .on { _ = clinux_keep_capabilities(0) }
      try? filters[role]?.install()
    }
  }

  /// Gives up what the calling thread, and all that it makes from now on, does not need. Threads that are there already have what
  /// they have.
  ///
  /// - Returns: what holds now. What the kernel does not have costs nothing but that.
  public static func enter(_ plan: SandboxPlan) -> SandboxReport {
    var report = SandboxReport(mode: plan.mode)
    guard plan.mode != .off else { return report }
    guard clinux_no_new_privileges() == 0 else {
      report.missing.append("the kernel does not let a process give up new privileges, and without that nothing else")
      return report
    }
    report.hasNoNewPrivileges = true
    if plan.mode == .on {
      do throws(Errno) {
        try FileAccess.restrict(
          to: plan.places, listens: plan.usesInternet, connects: plan.usesInternet || plan.connects)
        report.fileAccess = try FileAccess.version()
      } catch {
        report.missing.append(
          "files: the kernel has no Landlock for this process (\(error)), so it may open whatever its user may open")
      }
      report.dropsCapabilities = giveUpCapabilities(but: plan.opensForOthers ? Capability.opening : 0)
      if !report.dropsCapabilities { report.missing.append("capabilities: the kernel does not let this process give them up") }
    }
    do throws(Errno) {
      try CallFilter(allowing: SystemCalls.ofProcess(internet: plan.usesInternet || plan.connects), kills: plan.mode == .on)
        .install()
      report.filtersCalls = true
    } catch {
      report.missing.append("system calls: the kernel does not filter them for this process (\(error))")
    }
    return report
  }

  /// What a limit did not hold for stays without it: guest memory that the kernel pins.
  ///
  /// - Returns: whether nothing but what is kept is left.
  private static func giveUpCapabilities(but kept: UInt64) -> Bool {
    if clinux_capabilities() & Capability.lockMemory != 0 {
      _ = clinux_lift_lock_limit()
    }
    for capability in Int32(0)..<64 where kept & 1 << UInt64(capability) == 0 {
      guard clinux_drop_bound(capability) == 0 else { break }
    }
    return clinux_keep_capabilities(kept) == 0
  }
}

/// Bits as the kernel numbers capabilities.
private enum Capability {
  /// CAP_CHOWN, CAP_DAC_OVERRIDE and CAP_FOWNER.
  static let opening: UInt64 = 1 << 0 | 1 << 1 | 1 << 3
  /// CAP_IPC_LOCK.
  static let lockMemory: UInt64 = 1 << 14
}
