/// The program when a resource is missing, is taken away, or stalls: it serves, or says in one sentence why not, and what it
/// acknowledged is there.
import CLinux
import Foundation
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ScarcityTests {
  /// Starts a program that may serve or refuse to.
  private func tryToServe(_ scratch: Scratch, _ command: [String]) throws {
    let socket = scratch.path + "/s"
    let program = try ChildProgram(command)
    var isServing = false
    try waitUntil("it serves or says why not: \(program.output)") {
      isServing = program.output.contains("Serving")
      return isServing || program.output.contains("Error: ")
    }
    guard isServing else {
      let (status, output) = program.wait()
      #expect([64, 66, 69, 74].contains(status), "\(status): \(output)")
      return
    }
    // A front-end may be turned away, or wait for free descriptors. If it is served, the data is right.
    let guest = try ChildProgram([
      "/usr/bin/timeout", "-k", "5", "30", ChildProgram.vmmBlk, "guest", "--socket-path", socket, "--queues", "1", "verify",
      "--bytes", "256k",
    ])
    let told = guest.wait()
    #expect([0, 69, 124].contains(told.status), "\(told)")
    let (status, output) = program.end()
    #expect(status == 0, "\(status): \(output)")
  }

  private static let closing = "for place in /proc/self/fd/*; do n=${place##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; "

  private func command(_ scratch: Scratch, _ image: String, _ options: [String], before: String) -> [String] {
    // Without this process's descriptors, so that the limit is the program's alone.
    [
      "/bin/bash", "-c", Self.closing + before + "; exec \"$@\"", "bash", ChildProgram.vmmBlk, "serve", "--blk-file", image,
      "--socket-path",
    ]
      + [scratch.path + "/s"] + options
  }

  @Test(arguments: [8, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40]) func outOfDescriptors(limit: Int) throws {
    for engine in ["sync", "auto"] {
      let scratch = try Scratch()
      let image = try scratch.image(size: 1 << 20)
      try tryToServe(
        scratch, command(scratch, image, ["--engine", engine, "--num-queues", "2"], before: "ulimit -n \(limit)"))
    }
  }

  /// An unprivileged user, for whom limits apply, with a random number so that no other process counts.
  private func asNobody(_ scratch: Scratch, _ image: String, _ options: [String], limit: String) throws -> [String] {
    let user = UInt32.random(in: 1_000_000..<2_000_000_000)
    for path in [scratch.path, image] { try #require(unsafe chown(path, user, user) == 0) }
    return ["/usr/bin/setpriv", "--reuid", "\(user)", "--regid", "\(user)", "--clear-groups", "--bounding-set=-all"]
      + command(scratch, image, options, before: limit)
  }

  private static let canBeNobody: Bool =
    Host.isRoot && Host.run("setpriv", "--reuid", "1234567", "--clear-groups", ChildProgram.vmmBlk, "--version") != nil

  @Test(
    .enabled(if: canBeNobody, "the program cannot be started as another user here"),
    arguments: [["--engine", "uring", "--uring", "buffers"], ["--engine", "auto"], ["--engine", "aio"]])
  func outOfLockedMemory(options: [String]) throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 1 << 20)
    try tryToServe(scratch, asNobody(scratch, image, options, limit: "ulimit -l 0"))
  }

  @Test(
    .enabled(if: canBeNobody, "the program cannot be started as another user here"), arguments: [1, 3])
  func outOfThreads(limit: Int) throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 1 << 20)
    try tryToServe(scratch, asNobody(scratch, image, ["--engine", "threads"], limit: "ulimit -u \(limit)"))
  }

  /// A stopped process answers once it continues.
  @Test(arguments: ["sync", "uring", "aio", "threads", "mapped"]) func stoppedAndContinued(engine: String) throws {
    let scratch = try Scratch()
    let image = try scratch.image(size: 1 << 20)
    let socket = scratch.path + "/s"
    let program = try ChildProgram([
      ChildProgram.vmmBlk, "serve", "--engine", engine, "--direct", "off", "--blk-file", image, "--socket-path", socket,
    ])
    try program.waitForSocket(socket)
    let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 1 << 20)))
    let queue = client.queues[0]
    for round in 0..<5 {
      program.send(SIGSTOP)
      for sector: UInt64 in 0..<16 {
        _ = try #require(try queue.submit(.write(sector: sector, pattern(512, seed: round * 16 + Int(sector)))))
      }
      queue.publish()
      program.send(SIGCONT)
      var answered = 0
      try waitUntil("all is answered") {
        while let outcome = try queue.reap() {
          #expect(outcome.status == .ok)
          answered += 1
        }
        return answered == 16
      }
      for sector in 0..<16 {
        let answer = try client.perform(.read(sector: UInt64(sector), bytes: 512)).answer
        #expect(firstDifference(answer, pattern(512, seed: round * 16 + sector)) == nil)
      }
    }
    try client.shutDown()
    let (status, output) = program.end()
    #expect(status == 0, "\(output)")
  }

  /// A disk keeps the size and the file that it had when it was opened.
  @Test(arguments: FaultTests.engines) func grownAndReplaced(engine: EngineKind) throws {
    let rig = try Rig(RigOptions(engine: engine, size: 1 << 20))
    try rig.expect(.write(sector: 0, pattern(4096)))
    try #require(unsafe truncate(rig.path, 2 << 20) == 0)
    try rig.expect(.write(sector: 2048, pattern(512)), .ioError)
    try rig.expect(.write(sector: 2040, pattern(4096, seed: 2)))
    let other = try rig.scratch.image("other", size: 1 << 20)
    let moved = rig.scratch.path + "/moved"
    try #require(unsafe rename(rig.path, moved) == 0 && rename(other, rig.path) == 0)
    try rig.expect(.write(sector: 8, pattern(4096, seed: 3)))
    #expect(try firstDifference(rig.expect(.read(sector: 0, bytes: 4096)).answer, pattern(4096)) == nil)
    try rig.expect(.flush)
    #expect(try firstDifference(rig.scratch.contents(moved, at: 4096, count: 4096), pattern(4096, seed: 3)) == nil)
    #expect(try firstDifference(rig.contents(at: 4096, count: 4096), zeroes(4096)) == nil)
  }

  /// A file system that is shut down under a running disk: requests fail, none hangs, and the program goes on.
  @Test(.enabled(if: Host.canMountDisks && Host.hasLoop && Host.hasPython, "disks cannot be mounted here"))
  func aFileSystemThatGoesAway() async {
    await #expect(processExitsWith: .success) {
      let backing = try Scratch()
      let image = try backing.image("ext4", size: 64 << 20)
      try #require(Host.run("mkfs.ext4", "-q", image) != nil)
      try FileSystemTests.withMount(["-o", "loop", image]) { folder in
        var rigs: [Rig] = []
        for engine in FaultTests.engines {
          let rig = try Rig(RigOptions(engine: engine, folder: folder, size: 1 << 20))
          try rig.expect(.write(sector: 0, pattern(4096)))
          try rig.expect(.flush)
          rigs.append(rig)
        }
        // EXT4_IOC_SHUTDOWN without the log: nothing can be written any more.
        let script = """
          import fcntl, os, sys
          fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, (2).to_bytes(4, "little"))
          """
        try #require(Host.run("python3", "-c", script, folder) != nil)
        for rig in rigs {
          // A cached page may still take a write; a flush must not report it as stable.
          for sector: UInt64 in [0, 1024] { _ = try rig.perform(.write(sector: sector, pattern(4096, seed: 2))) }
          #expect(try rig.perform(.flush).status == .ioError, "\(rig.device.engine)")
          for _ in 0..<4 { _ = try rig.perform(.read(sector: 0, bytes: 4096)) }
        }
      }
    }
  }
}
