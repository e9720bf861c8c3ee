/// qcow2 images served by `vmm-blk serve`, with its sandbox, and disks of them that are added later.
import Foundation
import Glibc
import GuestDriver
import TestSupport
import Testing
import VhostUser
import VirtioCore

@Suite(.serialized) struct Qcow2ServeTests {
  /// base (raw, with bytes that tell where they belong), and overlays `a` and `b` over it.
  private func images(_ directory: String) throws -> [UInt8] {
    let content = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ $0 % 251) }
    try Data(content).write(to: URL(fileURLWithPath: directory + "/base"))
    for name in ["a", "b"] {
      let made = try Program(
        ["image", "create", directory + "/" + name, "--backing", "base", "--backing-format", "raw"]
      ).finish()
      #expect(made.status == 0, "\(made)")
    }
    return content
  }

  private func expect(_ content: [UInt8], on socket: String) throws {
    let transport = try VhostUserTransport(path: socket, memory: DriverMemory(size: 8 << 20))
    let client = try BlockClient(
      transport, options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
    for step in 0..<32 {
      let outcome = try client.queues[step % 2].perform(.read(sector: UInt64(step) * 64, bytes: 32768))
      #expect(outcome.status == .ok && outcome.answer == Array(content[step * 32768..<(step + 1) * 32768]), "\(step)")
    }
    #expect(try client.queues[0].perform(.write(sector: 0, [UInt8](repeating: 1, count: 512))).status == .ioError)
    try client.shutDown()
  }

  @Test(arguments: [[], ["--engine", "threads"], ["--engine", "sync"], ["--inject", "read:delay=1ms"]])
  func aChainIsServedInTheSandbox(more: [String]) throws {
    try withDirectory { directory in
      let content = try images(directory)
      let server = try Program(
        [
          "serve", "--read-only", "--image", "qcow2:\(directory)/a?backing=raw:\(directory)/base", "--socket-path",
          directory + "/a.sock",
        ] + more)
      #expect(server.firstLine().hasPrefix("Serving \(directory)/a on "))
      try expect(content, on: directory + "/a.sock")
      kill(server.process.processIdentifier, SIGTERM)
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  private func client(_ socket: String) throws -> BlockClient {
    let transport = try VhostUserTransport(path: socket, memory: DriverMemory(size: 8 << 20))
    return try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
  }

  private func disk(_ directory: String, _ file: String) throws -> [UInt8] {
    let made = try Program(
      ["image", "convert", "qcow2:\(directory)/a?backing=raw:\(directory)/base", "\(directory)/\(file)"]
    ).finish()
    #expect(made.status == 0, "\(made)")
    return Array(try Data(contentsOf: URL(fileURLWithPath: "\(directory)/\(file)")))
  }

  /// Answered writes are there when the server is killed, flushed or not; and a stopped server leaves nothing behind.
  @Test(arguments: [[], ["--engine", "sync"]]) func whatWasWrittenOutlivesTheServer(more: [String]) throws {
    try withDirectory { directory in
      var content = try images(directory)
      let words =
        [
          "serve", "--image", "qcow2:\(directory)/a?backing=raw:\(directory)/base", "--socket-path", directory + "/a.sock",
          "--num-queues", "2",
        ] + more
      for (round, signal) in [SIGTERM, SIGKILL].enumerated() {
        let server = try Program(words)
        #expect(server.firstLine().hasPrefix("Serving"))
        let client = try client(directory + "/a.sock")
        for step in 0..<24 {
          let sector = step * 61 % 2000 + round
          let bytes = [UInt8](repeating: UInt8(100 * round + step), count: 4096)
          let outcome = try client.queues[step % 2].perform(.write(sector: UInt64(sector), bytes))
          #expect(outcome.status == .ok)
          content.replaceSubrange(sector * 512..<sector * 512 + 4096, with: bytes)
        }
        if signal == SIGTERM {
          #expect(try client.queues[0].perform(.writeZeroes([BlockRange(sector: 128, sectors: 64)])).status == .ok)
          content.replaceSubrange(128 * 512..<192 * 512, with: repeatElement(0, count: 64 * 512))
          #expect(try client.queues[0].perform(.flush).status == .ok)
          try client.shutDown()
        }
        kill(server.process.processIdentifier, signal)
        let end = server.finish()
        #expect(signal == SIGKILL || end.status == 0, "\(end.errors)")
        #expect(try disk(directory, "raw\(round)") == content)
        let check = try Program(["image", "check", directory + "/a"]).finish()
        #expect(check.status == 0 || signal == SIGKILL && check.status == 3, "\(check)")
      }
    }
  }

  @Test func whatIsWrittenToIsNotTakenOver() throws {
    try withDirectory { directory in
      _ = try images(directory)
      let words = [
        "serve", "--image", "qcow2:\(directory)/a?backing=raw:\(directory)/base", "--socket-path", directory + "/a.sock",
        "--control", directory + "/control",
      ]
      let first = try Program(words)
      #expect(first.firstLine().hasPrefix("Serving"))
      let second = try Program(words + ["--take-over", directory + "/control"]).finish()
      #expect(second.status != 0 && second.errors.contains("no other process can take it over"), "\(second)")
      let client = try client(directory + "/a.sock")
      #expect(try client.queues[0].perform(.write(sector: 0, [UInt8](repeating: 1, count: 512))).status == .ok)
      try client.shutDown()
      kill(first.process.processIdentifier, SIGTERM)
      #expect(first.finish().status == 0)
    }
  }

  @Test func aDiskOfAChainIsAdded() throws {
    try withDirectory { directory in
      let content = try images(directory)
      let control = directory + "/control"
      let server = try Program(
        [
          "serve", "--read-only", "--image", "qcow2:\(directory)/a?backing-folder=\(directory)", "--socket-path",
          directory + "/a.sock", "--control", control,
        ])
      #expect(server.firstLine().hasPrefix("Serving"))
      func ctl(_ words: String...) throws -> (status: Int32, output: String, errors: String) {
        try Program(["ctl", "--control", control] + words).finish()
      }
      let refused = try ctl("add", "image=qcow2:\(directory)/b", "socket-path=\(directory)/b.sock", "read-only=true")
      #expect(refused.status != 0 && refused.errors.contains("backing-folder"), "\(refused)")
      let added = try ctl(
        "add", "image=qcow2:\(directory)/b?backing=raw:\(directory)/base", "socket-path=\(directory)/b.sock", "read-only=true")
      #expect(added.status == 0, "\(added)")
      for name in ["a", "b"] { try expect(content, on: directory + "/\(name).sock") }
      #expect(try ctl("flush", "b.sock").status == 0)
      #expect(try ctl("resize", "b.sock").status == 0)
      #expect(try ctl("resize", "b.sock", "2M").status != 0)
      #expect(try ctl("status", "b.sock").status == 0)
      #expect(try ctl("remove", "b.sock").status == 0)
      kill(server.process.processIdentifier, SIGTERM)
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  /// How many files the images name is not known before they are open, so the maximum is counted.
  @Test(arguments: [("?backing=raw:DIR/base", nil), ("?backing-folder=DIR", "need up to")] as [(String, String?)])
  func filesThatImagesNameAreCounted(more: String, sentence: String?) throws {
    try withDirectory { directory in
      _ = try images(directory)
      let image = "qcow2:\(directory)/a" + more.replacingOccurrences(of: "DIR", with: directory)
      let disks: [[String: Any]] = [["image": image, "socket-path": directory + "/a.sock", "read-only": true]]
      try JSONSerialization.data(withJSONObject: disks).write(to: URL(fileURLWithPath: directory + "/list"))
      let server = try Program(["serve", "--disks", directory + "/list"], limit: "-n 200")
      #expect(server.firstLine().hasPrefix("Serving"))
      kill(server.process.processIdentifier, SIGTERM)
      let end = server.finish()
      #expect(end.status == 0 && end.errors.contains(sentence ?? "need up to") == (sentence != nil), "\(end.errors)")
    }
  }

  /// Another process takes over the disk while its driver uses it.
  @Test func aChainIsTakenOver() throws {
    try withDirectory { directory in
      let content = try images(directory)
      let words = [
        "serve", "--read-only", "--image", "qcow2:\(directory)/a?backing=raw:\(directory)/base", "--socket-path",
        directory + "/a.sock", "--control", directory + "/control",
      ]
      let first = try Program(words)
      #expect(first.firstLine().hasPrefix("Serving"))
      let second = try Program(words + ["--take-over", directory + "/control"])
      #expect(second.firstLine().hasPrefix("Serving"))
      #expect(first.finish().status == 0)
      try expect(content, on: directory + "/a.sock")
      kill(second.process.processIdentifier, SIGTERM)
      let end = second.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }
}
