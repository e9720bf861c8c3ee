/// A Ceph cluster that runs for as long as tests need it: a monitor and an OSD on the loopback address.
import CLinux
import Foundation
import Glibc
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

extension Host {
  /// librbd is installed, and so are the programs of a cluster and its clients.
  static let hasCeph: Bool =
    RBDSupport.load() == nil && run("ceph-mon", "--version") != nil && run("ceph-osd", "--version") != nil
    && run("rbd", "--version") != nil
}

final class RBDCluster: Sendable {
  let folder: String
  private let images = Atomic<Int>(0)

  /// One for tests that leave it running, and one for tests that kill its daemons.
  static let shared = Result { try RBDCluster() }
  static let victim = Result { try RBDCluster() }

  /// Its data outlives its processes.
  init() throws {
    let memory = "/dev/shm"
    // In memory if possible, because the OSD makes everything stable.
    let parent = unsafe access(memory, W_OK) == 0 ? memory : NSTemporaryDirectory()
    folder = parent + "/vmm-blk-ceph-" + UUID().uuidString.prefix(8)
    try Self.script("start", folder, "\(getpid())")
  }

  deinit { try? Self.script("remove", folder) }

  private static func script(_ words: String...) throws {
    let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appendingPathComponent("Scripts/ceph.sh").path
    let (status, output) = try ChildProgram(["/usr/bin/env", "STORE=bluestore", path] + words).wait()
    try #require(status == 0, "\(output)")
  }

  var configuration: String { folder + "/ceph.conf" }

  /// Runs `rbd` with these words. - Returns: its output.
  @discardableResult
  func rbd(_ words: String...) throws -> String {
    let (status, output) = try ChildProgram(["/usr/bin/env", "rbd", "-c", configuration] + words).wait()
    try #require(status == 0, "rbd \(words): \(output)")
    return output
  }

  @discardableResult
  func ceph(_ words: String...) throws -> String {
    let (status, output) = try ChildProgram(["/usr/bin/env", "ceph", "-c", configuration] + words).wait()
    try #require(status == 0, "ceph \(words): \(output)")
    return output
  }

  /// Creates an image. - Returns: its name, without the pool's.
  func image(size: String = "16M", _ more: String...) throws -> String {
    let name = "image\(images.wrappingAdd(1, ordering: .relaxed).newValue)"
    let (status, output) = try ChildProgram(
      ["/usr/bin/env", "rbd", "-c", configuration, "create", "rbd/" + name, "--size", size] + more
    ).wait()
    try #require(status == 0, "\(output)")
    return name
  }

  /// - Parameter ownerTimeout: seconds to wait for another client's lock.
  func options(_ image: String, ownerTimeout: Int = 0, breaksLock: Bool = false) throws -> RBDOptions {
    var options = RBDOptions(try RBDLocation("rbd:rbd/\(image)?conf=\(configuration)"))
    (options.ownerTimeout, options.breaksLock) = (ownerTimeout, breaksLock)
    return options
  }

  private func process(_ daemon: String) throws -> pid_t {
    let text = try String(contentsOfFile: folder + "/\(daemon).pid", encoding: .utf8)
    return try #require(pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)))
  }

  /// - Parameter daemon: `osd.0` or `mon.a`.
  func kill(_ daemon: String) throws {
    let process = try process(daemon)
    Glibc.kill(process, SIGKILL)
    // The last thread holds its locks, which the next daemon needs. A zombie counts as dead.
    try waitUntil("\(daemon) is gone") { Self.threads(of: process, areAllIn: "ZX") }
  }

  /// Pauses all its threads: one that was running goes on for a while after the signal.
  func stop(_ daemon: String) throws {
    let process = try process(daemon)
    Glibc.kill(process, SIGSTOP)
    try waitUntil("\(daemon) is stopped") { Self.threads(of: process, areAllIn: "T") }
  }

  func goOn(_ daemon: String) throws { Glibc.kill(try process(daemon), SIGCONT) }

  /// - Parameter states: letters of the kernel's thread states.
  private static func threads(of process: pid_t, areAllIn states: String) -> Bool {
    let threads = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/task")) ?? []
    return threads.allSatisfy { thread in
      let path = "/proc/\(process)/task/\(thread)/status"
      guard let status = try? String(contentsOfFile: path, encoding: .utf8) else { return true }
      return states.contains { status.contains("State:\t\($0)") }
    }
  }

  /// Starts the daemons that were killed.
  func resume() throws { try Self.script("resume", folder) }
}
