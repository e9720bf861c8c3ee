/// A server that cannot allocate more memory refuses requests that need some, and keeps serving its present front-ends.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver

@Suite struct MemoryShortageTests {
  /// What is requested when there is no memory.
  struct Demand: Sendable, CustomTestStringConvertible {
    let testDescription: String
    /// MiB that the process may allocate beyond what it has.
    let room: Int
    /// MiB of guest memory.
    let memory: Int
    let queueSize: UInt16
    /// The server's message, one of these.
    var sentences: [String] = []
  }

  private static let demands = [
    Demand(
      testDescription: "the guest's memory", room: 64, memory: 1024, queueSize: 16,
      sentences: ["cannot be mapped: Cannot allocate memory"]),
    // Its slots need 17 MiB. A thread's stack and the heap's needs fit.
    Demand(
      testDescription: "a queue", room: 14, memory: 1, queueSize: 1024,
      sentences: ["there is no memory for the queue's requests", "there is no thread for the queue"]),
  ]

  /// Sets the limit of a process's address space: bytes, or `nil` for the largest that it may have.
  private func limit(_ process: pid_t, _ bytes: Int?) throws {
    let limits = try String(contentsOfFile: "/proc/\(process)/limits", encoding: .utf8).split(separator: "\n")
    let line = try #require(limits.first { $0.hasPrefix("Max address space") })
    let most = try #require(line.split(separator: " ").dropLast().last)
    let tool = Process()
    tool.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    tool.arguments = ["prlimit", "--pid", "\(process)", "--as=\(bytes.map { "\($0)" } ?? String(most)):\(most)"]
    try tool.run()
    tool.waitUntilExit()
    try #require(tool.terminationStatus == 0)
  }

  /// Bytes of a process's address space.
  private func addressSpace(_ process: pid_t) throws -> Int {
    let text = try String(contentsOfFile: "/proc/\(process)/statm", encoding: .utf8)
    return try #require(text.split(separator: " ").first.flatMap { Int($0) }) * Int(getpagesize())
  }

  private func client(_ socket: String, _ demand: Demand) throws -> BlockClient {
    let transport = try VhostUserTransport(path: socket, memory: DriverMemory(size: demand.memory << 20))
    return try BlockClient(
      transport,
      options: DriverOptions(features: BlockFeature.understood, queueSize: demand.queueSize, indirectTables: 4))
  }

  private func writeAndRead(_ client: BlockClient, _ value: UInt8) throws {
    let bytes = [UInt8](repeating: value, count: 512)
    #expect(try client.perform(.write(sector: 3, bytes)).status == .ok)
    #expect(try client.perform(.read(sector: 3, bytes: 512)).answer == bytes)
  }

  @Test(arguments: demands) func whatNeedsMemoryIsRefusedAndOthersGoOn(demand: Demand) throws {
    try withDirectory { directory in
      let entries = try (0..<2).map { index in
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: "\(directory)/\(index)"))
        return ["blk-file": "\(directory)/\(index)", "socket-path": "\(directory)/\(index).sock"]
      }
      try JSONSerialization.data(withJSONObject: entries).write(to: URL(fileURLWithPath: directory + "/list"))
      let program = try Program(["serve", "--disks", directory + "/list", "--engine", "sync"])
      let process = program.process.processIdentifier
      defer { kill(process, SIGKILL) }
      #expect(program.firstLine().contains("2 disks"))
      let neighbour = try client(
        directory + "/0.sock", Demand(testDescription: "", room: 0, memory: 1, queueSize: 16))
      try writeAndRead(neighbour, 1)

      try limit(process, addressSpace(process) + demand.room << 20)
      #expect(throws: DriverError.self) { try client(directory + "/1.sock", demand) }
      try writeAndRead(neighbour, 2)
      try limit(process, nil)

      let second = try client(directory + "/1.sock", demand)
      try writeAndRead(second, 3)
      try writeAndRead(neighbour, 4)
      try second.shutDown()
      try neighbour.shutDown()
      kill(process, SIGTERM)
      let result = program.finish()
      #expect(result.status == 0, "\(result.errors)")
      #expect(demand.sentences.contains { result.errors.contains($0) }, "\(result.errors)")
    }
  }
}
