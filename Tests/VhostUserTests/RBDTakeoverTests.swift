/// Images of Ceph clusters that are handed over from one process to another, which is possible only if they are read-only.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@Suite(.serialized, .enabled(if: Cluster.canBeMade, "Ceph is not installed: Scripts/setup.sh ceph")) struct RBDTakeoverTests {
  /// Names are local to a cluster and may be reused for other images: a taker must get the same image.
  @Test func anImageOfTheSameNameIsAnotherOne() throws {
    let (here, elsewhere) = (try Cluster(), try Cluster())
    for cluster in [here, elsewhere] { try cluster.rbd("create", "rbd/disk", "--size", "8M") }
    try withDirectory { directory in
      func server(_ cluster: Cluster, _ more: [String]) throws -> Program {
        try Program(
          [
            "serve", "--read-only", "--image", "rbd:rbd/disk?conf=\(cluster.configuration)", "--control",
            directory + "/control",
          ] + more)
      }
      let first = try server(here, ["--socket-path", directory + "/disk.sock"])
      try #require(first.firstLine().hasPrefix("Serving "))
      let taking = ["--take-over", directory + "/control"]
      let refused = try server(elsewhere, taking).finish()
      #expect(refused.status != 0 && refused.output.isEmpty)
      #expect(refused.errors.contains("rbd:rbd/disk") && refused.errors.contains("of the cluster"), "\(refused.errors)")
      let second = try server(here, taking)
      try #require(second.firstLine().hasPrefix("Serving "))
      #expect(first.finish().status == 0)
      try here.rbd("rm", "--no-progress", "rbd/disk")
      try here.rbd("create", "rbd/disk", "--size", "8M")
      let late = try server(here, taking).finish()
      #expect(late.status != 0 && late.errors.contains("of the cluster"), "\(late.errors)")
      second.process.terminate()
      let end = second.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }
}

/// A Ceph cluster that runs for as long as a test needs it.
private final class Cluster {
  static let canBeMade = ["ceph-mon", "ceph-osd", "rbd", "ceph"].allSatisfy {
    FileManager.default.isExecutableFile(atPath: "/usr/bin/" + $0)
  }

  let folder: String

  init() throws {
    // In memory if possible.
    let parent = unsafe access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NSTemporaryDirectory()
    folder = parent + "/vmm-blk-ceph-" + UUID().uuidString.prefix(8)
    try Self.run([Self.script, "start", folder, "\(getpid())"])
  }

  deinit { try? Self.run([Self.script, "remove", folder]) }

  var configuration: String { folder + "/ceph.conf" }

  func rbd(_ words: String...) throws { try Self.run(["rbd", "-c", configuration] + words) }

  private static let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().appendingPathComponent("Scripts/ceph.sh").path

  private static func run(_ words: [String]) throws {
    // Its daemons inherit the standard descriptors, so these must not be a pipe that a test reads to its end.
    let nothing = unsafe open("/dev/null", O_RDWR | O_CLOEXEC)
    try #require(nothing >= 0)
    let null = OwnedDescriptor(nothing)
    let status = try Child(words, standard: [null.rawValue, null.rawValue, null.rawValue]).wait()
    try #require(status == 0, "\(words)")
  }
}
