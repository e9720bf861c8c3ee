/// The sandbox: a process that serves disks gives up all rights that it does not need.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// How strict the sandbox is.
public enum SandboxMode: String, CaseIterable, Sendable {
  case on
  /// System calls that would end the process are executed and logged by the kernel; access to files and capabilities are not
  /// restricted.
  case log
  case off
}

/// The rights that a process still needs when everything is set up.
public struct SandboxPlan: Sendable {
  public var mode: SandboxMode
  /// Files that may be opened, and folders with everything below them.
  public var places: [AllowedPlace] = []
  /// Metrics are served on a TCP port.
  public var usesInternet = false
  /// Images are on servers that are reached over TCP.
  public var connects = false
  /// Disks are added and removed, and their images and sockets may belong to other users: the thread that opens them keeps the
  /// capabilities to override owners and modes of files and to change groups of sockets, if the process has them, within
  /// `places`.
  public var opensForOthers = false

  public init(_ mode: SandboxMode) { self.mode = mode }
}

/// The protections that are in force, and those that are missing.
public struct SandboxReport: Sendable {
  public let mode: SandboxMode
  /// System calls are filtered.
  public fileprivate(set) var filtersCalls = false
  /// Version of Landlock; `nil`: all files that the process's user may open can be opened.
  public fileprivate(set) var fileAccess: Int?
  /// Capabilities are given up.
  public fileprivate(set) var dropsCapabilities = false
  /// A program that is started could not gain rights.
  public fileprivate(set) var hasNoNewPrivileges = false
  /// A sentence for each protection that the kernel does not have or does not grant.
  public fileprivate(set) var missing: [String] = []

  /// Nothing is given up.
  public static let off = SandboxReport(mode: .off)

  fileprivate init(mode: SandboxMode) { self.mode = mode }

  /// The protections in force, in words.
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
  /// Makes threads that begin their work from now on give up the rights that their role does not need. Must be called before
  /// the first of them.
  ///
  /// - Parameter mode: the mode that `enter` will be called with.
  public static func arm(_ mode: SandboxMode) {
    guard mode != .off else { return }
    // Compiled now: later, the thread that creates another one may no longer be allowed to compile a filter.
    var filters: [ThreadRole: CallFilter] = [:]
    for role in ThreadRole.allCases {
      filters[role] = try? CallFilter(
        allowing: SystemCalls.of(role), refusing: SystemCalls.refused(of: role), kills: mode == .on)
    }
    ThreadRole.whenOneBegins { [filters] role in
      // A protection that is missing was already reported by `enter`.
      guard clinux_no_new_privileges() == 0 else { return }
      if mode == .on { _ = clinux_keep_capabilities(0) }
      try? filters[role]?.install()
    }
  }

  /// Gives up the rights that the calling thread, and all threads that it creates from now on, do not need. Threads that exist
  /// already keep their rights.
  ///
  /// - Returns: the protections that are in force now. If the kernel lacks one, the others still apply.
  public static func enter(_ plan: SandboxPlan) -> SandboxReport {
    var report = SandboxReport(mode: plan.mode)
    guard plan.mode != .off else { return report }
    guard clinux_no_new_privileges() == 0 else {
      report.missing.append("the kernel does not let this process give up new privileges, which everything else needs")
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
          "files: the kernel has no Landlock for this process (\(error)), so it may open all files that its user may open")
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

  /// Drops capabilities. A process with CAP_IPC_LOCK first lifts its limit of locked memory, because the kernel pins guest
  /// memory.
  ///
  /// - Returns: whether only the kept capabilities are left.
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
