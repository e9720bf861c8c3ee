/// What an operator can change while a guest uses a disk: its size, and its rate limits.
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

@Suite(.serialized) struct OperatorChangesTests {
  private static let mebibyte: UInt64 = 1 << 20

  /// A server with one disk of 4 MiB, `a`.
  private static func withServer(_ more: [String] = [], _ body: (Operated) throws -> Void) throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"], more)
      try body(server)
      try server.end()
    }
  }

  private static func length(_ server: Operated) throws -> UInt64 {
    let attributes = try FileManager.default.attributesOfItem(atPath: server.directory + "/a.img")
    return try #require((attributes[.size] as? NSNumber)?.uint64Value)
  }

  private static func write(_ client: BlockClient, at offset: UInt64, _ byte: UInt8) throws -> BlockStatusCode {
    try client.perform(.write(sector: offset / 512, [UInt8](repeating: byte, count: 4096))).status
  }

  private static func read(_ client: BlockClient, at offset: UInt64) throws -> (BlockStatusCode, [UInt8]) {
    let outcome = try client.perform(.read(sector: offset / 512, bytes: 4096))
    return (outcome.status, outcome.answer)
  }

  // MARK: Size

  /// A disk that has grown can be used up to its new end, with every engine, and keeps its data; so does a smaller one.
  @Test(arguments: ["uring", "sync", "mapped", "cached", "threads", "aio"]) func aDiskIsResizedUnderItsDriver(
    engine: String
  ) throws {
    try Self.withServer(["--engine", engine]) { server in
      let client = try server.guest("a")
      #expect(client.capacity == 4 * Self.mebibyte)
      #expect(try Self.write(client, at: 0, 0x11) == .ok)
      #expect(try Self.write(client, at: 4 * Self.mebibyte, 0x22) == .ioError)
      // First resized by another program.
      #expect(unsafe truncate(server.directory + "/a.img", 6 << 20) == 0)
      #expect(try Self.write(client, at: 4 * Self.mebibyte, 0x22) == .ioError)
      #expect(try server.ask("resize", disk: "a.sock")["size"] as? UInt64 == 6 * Self.mebibyte)
      try client.reloadConfiguration()
      #expect(client.capacity == 6 * Self.mebibyte)
      for offset in stride(from: 4 * Self.mebibyte, to: 6 * Self.mebibyte, by: 4096 * 16) {
        #expect(try Self.read(client, at: offset) == (.ok, [UInt8](repeating: 0, count: 4096)))
        #expect(try Self.write(client, at: offset, UInt8(truncatingIfNeeded: offset >> 16)) == .ok)
        #expect(
          try Self.read(client, at: offset) == (.ok, [UInt8](repeating: UInt8(truncatingIfNeeded: offset >> 16), count: 4096)))
      }
      #expect(try Self.read(client, at: 0) == (.ok, [UInt8](repeating: 0x11, count: 4096)))
      #expect(try client.perform(.flush).status == .ok)
      // Then by the server.
      #expect(try server.ask("resize", #","disk":"a.sock","size":\#(8 << 20)"#)["size"] as? UInt64 == 8 * Self.mebibyte)
      #expect(try Self.write(client, at: 8 * Self.mebibyte - 4096, 0x33) == .ok)
      #expect(try Self.length(server) == 8 * Self.mebibyte)
      let refused = try server.ask("resize", #","disk":"a.sock","size":\#(2 << 20)"#)
      #expect((refused["error"] as? String)?.contains("confirm that with --shrink") == true)
      #expect(
        try server.ask("resize", #","disk":"a.sock","shrink":true,"size":\#(2 << 20)"#)["size"] as? UInt64 == 2 * Self.mebibyte)
      #expect(try Self.length(server) == 2 * Self.mebibyte)
      try client.reloadConfiguration()
      #expect(client.capacity == 2 * Self.mebibyte)
      #expect(try Self.write(client, at: 2 * Self.mebibyte, 0x44) == .ioError)
      #expect(try Self.read(client, at: 4 * Self.mebibyte).0 == .ioError)
      #expect(try Self.write(client, at: 2 * Self.mebibyte - 4096, 0x55) == .ok)
      #expect(try Self.read(client, at: 0) == (.ok, [UInt8](repeating: 0x11, count: 4096)))
      #expect(try Self.length(server) == 2 * Self.mebibyte)
      try client.shutDown()
    }
  }

  /// A guest that uses only the first half is not affected by what happens to the second.
  @Test(arguments: ["uring", "mapped"]) func whoeverWorksInAPartNoticesNothing(engine: String) throws {
    try Self.withServer(["--engine", engine]) { server in
      try server.whileBusy("a") { load in
        for _ in 1...5 {
          try load.wait()
          #expect(try server.ask("resize", #","disk":"a.sock","size":\#(16 << 20)"#)["size"] != nil)
          try load.wait()
          #expect(try server.ask("resize", #","disk":"a.sock","shrink":true,"size":\#(4 << 20)"#)["size"] != nil)
        }
        try load.wait()
      }
    }
  }

  @Test func anImageThatHasGrownIsNoticedOnSIGHUP() throws {
    try Self.withServer { server in
      let client = try server.guest("a")
      #expect(unsafe truncate(server.directory + "/a.img", 5 << 20) == 0)
      kill(server.server.process.processIdentifier, SIGHUP)
      try wait(until: "the disk has grown") {
        try client.reloadConfiguration()
        return client.capacity == 5 * Self.mebibyte
      }
      try client.shutDown()
    }
  }

  /// Also with an engine that maps the image: the next server maps all of it.
  @Test func aDiskThatWasResizedIsTakenOver() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"], ["--engine", "mapped"])
      #expect(try server.ask("resize", #","disk":"a.sock","size":\#(8 << 20)"#)["size"] != nil)
      let options = ["--engine", "mapped", "--take-over", directory + "/control", "--control", directory + "/control"]
      let next = try Program(["serve", "--disks", directory + "/list"] + options)
      #expect(next.firstLine().hasPrefix("Serving "))
      #expect(server.server.finish().status == 0)
      let client = try server.guest("a")
      #expect(client.capacity == 8 * Self.mebibyte)
      #expect(try Self.write(client, at: 8 * Self.mebibyte - 4096, 1) == .ok)
      try client.shutDown()
      next.process.terminate()
      #expect(next.finish().status == 0)
    }
  }

  @Test(arguments: [
    (#","size":0"#, "not a whole number of blocks"), (#","size":1000"#, "not a whole number of blocks"),
    (#","size":18446744073709551104"#, "not a whole number of blocks"),
    (#","size":-512"#, "numbers that are whole and in range"),
    (#","size":"1G""#, "has an invalid value"), (#","size":512"#, "--shrink"),
  ])
  func sizesThatCannotBe(_ members: String, _ sentence: String) throws {
    try Self.withServer { server in
      let answer = try server.ask("resize", #","disk":"a.sock""# + members)
      #expect((answer["error"] as? String)?.contains(sentence) == true, "\(answer)")
      #expect(try Self.length(server) == 4 * Self.mebibyte)
    }
  }

  /// `ctl resize 8M` once took "8M" for a disk's name, although the name can be left out if there is only one disk.
  @Test func theOnlyDiskNeedsNoNameToBeResizedOrLimited() throws {
    try Self.withServer { server in
      func ctl(_ words: String...) throws -> String {
        let end = try Program(["ctl", "--control", server.directory + "/control"] + words).finish()
        return end.status == 0 ? end.output : end.errors
      }
      #expect(unsafe truncate(server.directory + "/a.img", 6 << 20) == 0)
      let adapted = try ctl("resize")
      #expect(adapted == "the disk has 6 MiB (6291456 bytes)\n")
      #expect(try ctl("resize", "8M") == "the disk has 8 MiB (8388608 bytes)\n")
      #expect(try Self.length(server) == 8 * Self.mebibyte)
      #expect(try ctl("resize", "2M").contains("confirm that with --shrink"))
      #expect(try ctl("resize", "2M", "--shrink") == "the disk has 2 MiB (2097152 bytes)\n")
      // With a name, as before.
      #expect(try ctl("resize", "a.sock", "4M") == "a.sock has 4 MiB (4194304 bytes)\n")
      #expect(try ctl("resize", "./8M").contains("there is no disk"))
      #expect(try ctl("limit", "iops=700") == "iops=700/70\n")
      #expect(try ctl("limit") == "iops=700/70\n")
      #expect(try ctl("limit", "none") == "none\n")
      #expect(try ctl("limit", "nobody").contains("there is no disk nobody here"))
    }
  }

  // MARK: Limits

  @Test func limitsAreChangedByTheirNames() throws {
    try Self.withServer(["--limit", "iops=5000,write-bytes=50M/100M"]) { server in
      func limit(_ words: String...) throws -> String {
        let end = try Program(["ctl", "--control", server.directory + "/control", "limit", "a.sock"] + words).finish()
        return end.status == 0 ? end.output : end.errors
      }
      #expect(try limit() == "iops=5000/500,write-bytes=52428800/104857600\n")
      #expect(try limit("read-iops=100,iops=none") == "read-iops=100/10,write-bytes=52428800/104857600\n")
      #expect(try limit("write-bytes=1000/1") == "read-iops=100/10,write-bytes=1000/1\n")
      #expect(try limit("none") == "none\n")
      for wrong in ["iops", "iops=", "iops=0", "iops=5/0", "iops=1,iops=2", "iop=5", "bytes=1X", "iops=1/2/3"] {
        #expect(try limit(wrong).contains("use words of iops, read-iops"), "\(wrong)")
      }
      let unknown = try server.ask("limit", #","disk":"a.sock","limits":{"iop":{"rate":5}}"#)
      #expect((unknown["error"] as? String)?.contains(#"did you mean "iops"?"#) == true)
      #expect((try server.ask("limit", #","limits":{"iops":{"rate":0}}"#)["error"] as? String)?.contains("at least 1") == true)
      #expect((try server.ask("limit")["limits"] as? [String: Any])?.isEmpty == true)
    }
  }

  /// A request that waits for a limit continues when that is lifted.
  @Test func aLimitHoldsAtOnceAndIsLiftedAtOnce() throws {
    try Self.withServer { server in
      try server.whileBusy("a") { load in
        for _ in 1...3 {
          try load.wait()
          #expect(try server.ask("limit", #","disk":"a.sock","limits":{"iops":{"rate":1,"burst":1}}"#)["limits"] != nil)
          let before = try server.number("throttled", "a")
          try wait(until: "requests wait") { try server.number("throttled", "a") > before }
          // FLUSH is not limited; of everything else one per second may go.
          let done = try server.number("reads", "a") + server.number("writes", "a")
          usleep(300_000)
          #expect(try server.number("reads", "a") + server.number("writes", "a") <= done + 64)
          #expect(try server.ask("limit", #","disk":"a.sock","limits":{"iops":null}"#)["limits"] != nil)
        }
        try load.wait()
      }
    }
  }

  @Test func limitsGoWithATakeover() throws {
    try withDirectory { directory in
      let server = try Operated(directory, ["a"])
      #expect(try server.ask("limit", #","disk":"a.sock","limits":{"read-iops":{"rate":700}}"#)["limits"] != nil)
      let options = ["--take-over", directory + "/control", "--control", directory + "/control"]
      let next = try Program(["serve", "--disks", directory + "/list"] + options)
      #expect(next.firstLine().hasPrefix("Serving "))
      #expect(server.server.finish().status == 0)
      let limits = try Program(["ctl", "--control", directory + "/control", "limit", "a.sock"]).finish()
      #expect(limits.output == "read-iops=700/70\n", "\(limits.errors)")
      next.process.terminate()
      #expect(next.finish().status == 0)
    }
  }

  @Test func limitsOfTheListAreChangedByAReload() throws {
    try Self.withServer { server in
      let entry = Operated.entry(server.directory, "a", #", "limit": "bytes=1M""#)
      try Data("[\(entry)]".utf8).write(to: URL(fileURLWithPath: server.directory + "/list"))
      #expect(try server.ask("reload")["untouched"] as? Int == 1)
      let limits = try #require(try server.ask("limit")["limits"] as? [String: [String: Int]])
      #expect(limits == ["bytes": ["rate": 1 << 20, "burst": (1 << 20) / 10]])
    }
  }
}
