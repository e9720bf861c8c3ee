/// A server that took over has died, and the kernel still executes what it had submitted: no server continues with the image
/// until that has ended.
import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import Sockets
@testable import VhostUser

extension TakeoverTests {
  /// The lock that a taker holds through the open file description of its requests (Docs/takeover.md), as it remains after its
  /// process has died.
  private final class Mark: Sendable {
    private let descriptor: Mutex<OwnedDescriptor?>

    init(_ image: String) throws {
      let number = unsafe open(image, O_RDWR | O_CLOEXEC)
      try #require(number >= 0)
      descriptor = Mutex(OwnedDescriptor(number))
      var lock = flock()
      lock.l_type = Int16(F_RDLCK)
      lock.l_whence = Int16(SEEK_SET)
      lock.l_start = .max
      lock.l_len = 1
      try #require(unsafe clinux_fcntl_lock(number, clinux_ofd_setlk, &lock) == 0)
    }

    func end() { descriptor.withLock { $0 = nil } }
  }

  /// The taker may have begun, and is killed. The previous server continues once the taker's last request has ended, not
  /// earlier.
  @Test(arguments: [true, false]) func whatADeadTakerHasAtTheMediumIsWaitedFor(keepsRecords: Bool) throws {
    try withDirectory { directory in
      let succession = Succession(engine: "uring", queues: 2, keepsRecords: keepsRecords)
      let (server, disk) = (try Self.serve(directory, succession), directory + "/disk.sock")
      _ = try Self.underLoad(directory, succession) {
        let taker = try Taker(directory + "/control")
        for verb in ["take-over", "describe", "pause"] { #expect(try !taker.ask(verb, disk: disk).contains("\"error\"")) }
        let mark = try Mark(directory + "/disk")
        #expect(try !taker.ask("commit", disk: disk).contains("\"error\""))
        taker.close()
        /// What a new taker is told now.
        func greeting() throws -> String {
          let next = try Taker(directory + "/control")
          defer { next.close() }
          return try next.ask("take-over", disk: "")
        }
        try wait(until: "the disk waits for its medium") {
          (try? greeting())?.contains("waits for requests that another server has left at the medium") == true
        }
        // It stays that way through every takeover.
        for _ in 0..<20 { #expect(try greeting().contains("waits for requests that another server has left at the medium")) }
        mark.end()
        try wait(until: "the disk goes on") { (try? greeting())?.contains("\"disks\"") == true }
      }
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  /// SIGTERM does not wait for another server's requests, and the disk does not continue.
  @Test func aServerThatWaitsForADeadTakerCanBeEnded() throws {
    try withDirectory { directory in
      let (server, disk) = (try Self.serve(directory, Succession(engine: "uring")), directory + "/disk.sock")
      let taker = try Taker(directory + "/control")
      for verb in ["take-over", "describe", "pause"] { _ = try taker.ask(verb, disk: disk) }
      let mark = try Mark(directory + "/disk")
      _ = try taker.ask("commit", disk: disk)
      taker.close()
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
      #expect(!end.errors.contains("stays here"), "\(end.errors)")
      mark.end()
    }
  }

  /// After a takeover the lock belongs to the old server's open file description, and requests go through another one: that one
  /// keeps the image locked as well.
  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs))
  func theImageOfAServerThatTookOverStaysLockedUntilItsRequestsHaveEnded() throws {
    try withDirectory { directory in
      let silent = try SilentFile(size: 1 << 20)
      let options = ["--blk-file", silent.path, "--engine", "uring", "--direct", "on", "--logical-block-size", "4096"]
      let control = ["--control", directory + "/control"]
      let socket = directory + "/disk.sock"
      let first = try Program(["serve", "--socket-path", socket] + options + control)
      try #require(first.firstLine().hasPrefix("Serving "))
      let client = try BlockClient(VhostUserTransport(path: socket, memory: DriverMemory(size: 4 << 20)))
      try client.write([UInt8](repeating: 1, count: 4096), at: 0)
      let second = try Program(["serve", "--take-over", directory + "/control"] + options + control)
      try #require(second.firstLine().hasPrefix("Serving "))
      #expect(first.finish().status == 0)
      try silent.hold("write")
      _ = try client.queues[0].submit(.write(sector: 0, [UInt8](repeating: 2, count: 4096)))
      client.queues[0].publish()
      try silent.waitUntilHeld("write")
      kill(second.process.processIdentifier, SIGKILL)
      // The process has ended, and its write has not.
      _ = second.finish()
      for reading in [[], ["--read-only"]] {
        let next = try Program(["serve", "--socket-path", directory + "/next.sock"] + options + reading)
        try #require(next.firstLine().isEmpty, "nobody serves it")
        let end = next.finish()
        #expect(end.status == 66)
        #expect(end.errors.contains("is in use by another process that writes to it"), "\(end.errors)")
      }
      silent.end()
    }
  }
}
