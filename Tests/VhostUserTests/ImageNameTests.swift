/// `--image` and NBD from a user's view: arguments, a sandboxed server, disks that are added.
import Foundation
import GuestDriver
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite(.serialized) struct ImageNameTests {
  @Test(arguments: [
    (["--image", "disk.img"], "does not take"),
    (["--image", "file:"], "names no path"),
    (["--image", "qcow2:"], "names no path"),
    (["--image", "qcow2:DIR/disk", "--format", "raw"], "leave --format out"),
    (["--image", "nbd://host/", "--format", "qcow2"], "leave --format out"),
    (["--image", "qcow2:DIR/disk?backing=DIR/base"], "needs a format before"),
    (["--image", "qcow2:DIR/disk?snapshot=a&snapshot=b"], "given twice"),
    (["--image", "qcow2:DIR/disk?base=a"], "'base' is not known"),
    (["--image", "qcow2:DIR/disk?snapshot"], "'snapshot' needs a value"),
    (["--image", "qcow2:DIR/disk%0"], "names no path"),
    (["--image", "qcow2:DIR/disk?snapshot=a"], "--read-only"),
    (["--image", "qcow2:DIR/disk"], "does not start with a qcow2 header"),
    (["--image", "qcow2:DIR/disk", "--read-only"], "does not start with a qcow2 header"),
    (["--blk-file", "DIR/disk", "--format", "qcow2", "--read-only"], "does not start with a qcow2 header"),
    (["--image", "qcow2:DIR/none", "--read-only"], "'vmm-blk image create --size 1G"),
    (["--image", "qcow2:DIR/disk", "--read-only", "--direct", "on"], "leave --direct out"),
    (["--image", "rbd:disk"], "does not name a pool and an image"),
    (["--image", "rbd:pool/disk:id=admin"], "follow a '?'"),
    (["--image", "rbd:pool/disk?id=client.a"], "without 'client.'"),
    (["--image", "rbd:pool/disk@a?conf=DIR/none"], "--read-only"),
    (["--image", "rbd:pool/disk", "--format", "qcow2"], "leave --format out"),
    (["--image", "file:DIR/disk", "--break-lock"], "leave it out"),
    (["--image", "rbd:pool/disk", "--break-lock", "--read-only"], "because of --read-only"),
    (["--image", "rbd:pool/disk@a", "--break-lock"], "because of its snapshot"),
    (["--image", "rbd:pool/disk", "--break-lock", "--no-lock"], "because of --no-lock"),
    (["--image", "file:DIR/disk", "--engine", "rbd"], "leave --engine out"),
    (["--image", "file:DIR/disk", "--allow-rbd"], "added later"),
    (["--image", "nbds://host/"], "tls-certificates=FOLDER"),
    (["--image", "ftp://host/disk"], "does not know"),
    (["--image", "file:DIR/disk", "--blk-file", "DIR/disk"], "give one of them"),
    (["--image", "file:DIR/none"], "there is no image"),
    (["--image", "file:DIR/disk", "--reconnect-timeout", "86401"], "--reconnect-timeout"),
    (["--image", "file:DIR/disk", "--engine", "nbd"], "leave --engine out"),
    (["--image", "file:DIR/disk", "--allow-nbd"], "added later"),
  ]) func mistakesAreOneSentence(words: [String], sentence: String) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let words = words.map { $0.replacingOccurrences(of: "DIR", with: directory) }
      let result = try Program(["serve", "--socket-path", directory + "/s"] + words).finish()
      #expect(result.status != 0)
      let errors = result.errors.split(separator: "\n").filter { $0.hasPrefix("Error: ") }
      #expect(errors.count == 1 && errors[0].contains(sentence), "\(result.errors)")
      #expect(!FileManager.default.fileExists(atPath: directory + "/s"))
    }
  }

  /// The same in a list of disks.
  @Test(arguments: [
    (#"{ "socket-path": "DIR/s" }"#, #""blk-file" is missing"#),
    (#"{ "socket-path": "DIR/s", "blk-file": "DIR/disk", "image": "file:DIR/disk" }"#, "give one of them"),
    (#"{ "socket-path": "DIR/s", "image": "qcow2:DIR/disk?snapshot=a" }"#, "--read-only"),
    (#"{ "socket-path": "DIR/s", "image": "rbd:disk" }"#, "does not name a pool and an image"),
    (
      #"{ "socket-path": "DIR/s", "image": "file:DIR/disk" }, { "socket-path": "DIR/t", "blk-file": "DIR/disk" }"#,
      "the image of entry 1"
    ),
    (
      #"{ "socket-path": "DIR/s", "image": "rbd:a/b?id=x" }, { "socket-path": "DIR/t", "image": "rbd:a/b", "read-only": true }"#,
      "the image of entry 1"
    ),
  ]) func mistakesInALine(entries: String, sentence: String) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let list = "[" + entries.replacingOccurrences(of: "DIR", with: directory) + "]"
      try Data(list.utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let result = try Program(["serve", "--disks", directory + "/list"]).finish()
      #expect(result.status != 0 && result.errors.contains(sentence), "\(result.errors)")
    }
  }

  @Test func aFileByItsURI() throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let server = try Program(["serve", "--image", "file:\(directory)/disk", "--socket-path", directory + "/a.sock"])
      #expect(server.firstLine().hasPrefix("Serving \(directory)/disk on "))
      kill(server.process.processIdentifier, SIGTERM)
      #expect(server.finish().status == 0)
    }
  }

  /// A sandboxed process can still do everything that a reconnection needs.
  @Test(.enabled(if: NBDDisk.canBeServed, "nbdkit is not installed"), arguments: [[], ["--inject", "read:delay=1ms"]])
  func aServerInItsSandboxConnectsAgain(more: [String]) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory)
      let server = try Program(
        ["serve", "--image", disk.uri, "--socket-path", directory + "/a.sock", "--reconnect-timeout", "600"] + more)
      #expect(server.firstLine().hasPrefix("Serving \(disk.uri) on "))
      let transport = try VhostUserTransport(path: directory + "/a.sock", memory: DriverMemory(size: 8 << 20))
      let client = try BlockClient(
        transport, options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
      let data = [UInt8](repeating: 0x77, count: 4096)
      for queue in client.queues { #expect(try queue.perform(.write(sector: UInt64(queue.index) * 8, data)).status == .ok) }
      #expect(try client.queues[0].perform(.flush).status == .ok)
      for _ in 0..<2 {
        disk.kill()
        try disk.start()
        for queue in client.queues {
          #expect(try queue.perform(.read(sector: UInt64(queue.index) * 8, bytes: 4096)).answer == data)
        }
      }
      try client.shutDown()
      kill(server.process.processIdentifier, SIGTERM)
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
      #expect(end.errors.contains("is gone") && end.errors.contains("is back"), "\(end.errors)")
    }
  }

  /// A server that has only files has no NBD in its sandbox; a server that was told to allow it has.
  @Test(.enabled(if: NBDDisk.canBeServed, "nbdkit is not installed"), arguments: [false, true])
  func aDiskThatIsAdded(isAllowed: Bool) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory)
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let control = directory + "/control"
      let server = try Program(
        ["serve", "--blk-file", directory + "/disk", "--socket-path", directory + "/a.sock", "--control", control]
          + (isAllowed ? ["--allow-nbd"] : []))
      #expect(server.firstLine().hasPrefix("Serving"))
      func ctl(_ words: String...) throws -> (status: Int32, output: String, errors: String) {
        try Program(["ctl", "--control", control] + words).finish()
      }
      #expect(try ctl("add", "image=nbd+unix:///?socket=nbd", "socket-path=b.sock").errors.contains("absolute paths"))
      let added = try ctl("add", "image=\(disk.uri)", "socket-path=\(directory)/b.sock")
      #expect(isAllowed ? added.status == 0 : added.errors.contains("--allow-nbd"), "\(added)")
      let name = try ctl("add", "image=nbd://localhost/", "socket-path=\(directory)/c.sock")
      #expect(name.errors.contains(isAllowed ? "numeric address" : "--allow-nbd"), "\(name)")
      if isAllowed {
        let transport = try VhostUserTransport(path: directory + "/b.sock", memory: DriverMemory(size: 8 << 20))
        let client = try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
        #expect(try client.queues[0].perform(.write(sector: 0, [UInt8](repeating: 1, count: 512))).status == .ok)
        try client.shutDown()
        #expect(try ctl("flush", "b.sock").status == 0)
        #expect(try ctl("resize", "b.sock").status == 0)
        #expect(try ctl("remove", "b.sock").status == 0)
      }
      #expect(try ctl("add", "image=file:\(directory)/image", "socket-path=\(directory)/d.sock").status == 0)
      kill(server.process.processIdentifier, SIGTERM)
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }
}
