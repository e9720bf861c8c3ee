/// The synthetic guest as a front-end that migrates it: the back-end logs the pages it writes.
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

@Suite struct WrittenPagesTests {
  /// Returns the marked pages, and clears the marks.
  static func takeMarks(_ log: WrittenPages) throws -> Set<UInt64> {
    let mapping = try Mapping(descriptor: log.descriptor.rawValue, count: Int(log.area.size))
    var pages: Set<UInt64> = []
    for place in 0..<Int(log.area.size) {
      let byte = unsafe mapping.base.load(fromByteOffset: place, as: UInt8.self)
      for bit in 0..<8 where byte >> UInt8(bit) & 1 != 0 { pages.insert(UInt64(place * 8 + bit)) }
      unsafe mapping.base.storeBytes(of: 0, toByteOffset: place, as: UInt8.self)
    }
    return pages
  }

  @Test(arguments: ["sync", "auto"]) func aReadMarksItsBufferAndTheUsedRing(engine: String) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let socket = directory + "/sock"
      let program = try Program([
        "serve", "--blk-file", directory + "/disk", "--socket-path", socket, "--engine", engine,
      ])
      let process = program.process.processIdentifier
      defer { kill(process, SIGKILL) }
      #expect(program.firstLine().hasPrefix("Serving"))

      let memory = try DriverMemory(size: 4 << 20, at: GuestAddress(0x10_0000))
      let transport = try VhostUserTransport(path: socket, memory: memory, logsWrites: true)
      let log = try #require(transport.writtenPages)
      #expect(log.area.size * 8 >= (0x10_0000 + (4 << 20)) / 4096)
      let client = try BlockClient(transport)
      _ = try Self.takeMarks(log)
      #expect(try client.perform(.read(sector: 0, bytes: 64 << 10)).status == .ok)
      let pages = try Self.takeMarks(log)
      let usedRing = try #require(transport.queues.first).configuration.usedRing.rawValue
      #expect(pages.contains(usedRing / 4096))
      // 64 KiB span at least 16 pages, and all of them are the guest's.
      #expect(pages.count >= 17, "\(pages.sorted())")
      #expect(pages.allSatisfy { (0x100..<0x500).contains($0) }, "\(pages.sorted())")
      try client.shutDown()
      kill(process, SIGTERM)
      #expect(program.finish().status == 0)
    }
  }

  @Test func theBenchmarkRunsWithALog() throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let socket = directory + "/sock"
      let server = try Program(["serve", "--blk-file", directory + "/disk", "--socket-path", socket, "--engine", "sync"])
      let process = server.process.processIdentifier
      defer { kill(process, SIGKILL) }
      #expect(server.firstLine().hasPrefix("Serving"))
      let bench = try Program([
        "bench", "--socket-path", socket, "--log", "--inflight", "--runtime", "0.05s", "--ramp_time", "0s", "--rw",
        "randrw", "--iodepth", "4", "--no-ceiling-check", "--client-sleeps",
      ])
      let result = bench.finish()
      #expect(result.status == 0, "\(result.output) \(result.errors)")
      kill(process, SIGTERM)
      #expect(server.finish().status == 0)
    }
  }

  @Test(arguments: [["--ceiling"], ["--blk-file", "/nonexistent"], ["--memory", "/nonexistent"]])
  func aLogIsForASocket(target: [String]) throws {
    let result = try Program(["bench", "--log"] + target).finish()
    #expect(result.status == 64)
    #expect(result.errors.contains("--log is for a back-end on a socket"), "\(result.errors)")
  }
}
