/// Exports of NBD servers, served by a sandboxed process: over TCP and TLS, with servers that are killed, and handed over to
/// another process.
import Foundation
import GuestDriver
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite(.serialized, .enabled(if: NBDDisk.canBeServed, "nbdkit is not installed")) struct NBDServeTests {
  private static func words(_ directory: String, _ uri: String) -> [String] {
    [
      "serve", "--image", uri, "--control", directory + "/control", "--num-queues", "4", "--reconnect-timeout", "600",
    ]
  }

  private static func serve(_ directory: String, _ disk: NBDDisk, more: [String] = []) throws -> Program {
    let server = try Program(words(directory, disk.uri) + ["--socket-path", directory + "/disk.sock"] + more)
    try #require(server.firstLine().hasPrefix("Serving "))
    return server
  }

  private static func ctl(_ directory: String, _ words: String...) throws -> (status: Int32, output: String, errors: String) {
    try Program(["ctl", "--control", directory + "/control"] + words).finish()
  }

  /// Runs a guest's workload while something is done to its server, or to the NBD server behind that.
  private static func underLoad(_ directory: String, _ act: (Load) throws -> Void) throws -> VerifyProgress {
    try Load.run(
      {
        let transport = try VhostUserTransport(
          path: directory + "/disk.sock", memory: DriverMemory(size: 16 << 20),
          reconnection: Reconnection(base: .used, keepsRecords: true))
        return try BlockClient(
          transport, options: DriverOptions(features: BlockFeature.understood, queues: 2, queueSize: 64))
      }, during: act
    ).progress
  }

  /// A sandboxed process can still do everything that a reconnection needs, and no secret is logged.
  @Test(arguments: NBDDisk.Way.possible) func theServerIsKilledUnderLoad(way: NBDDisk.Way) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory, way)
      let server = try Self.serve(directory, disk, more: ["--server-keeps-writes", "--log-level", "debug"])
      let progress = try Self.underLoad(directory) { load in
        for _ in 0..<3 {
          disk.kill()
          try disk.start()
          try load.wait()
        }
      }
      #expect(progress.answered > 0)
      var said = try Self.ctl(directory, "status", "--json").output + Self.ctl(directory, "status").output
      #expect(said.contains("127.0.0.1") || way == .socket)
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
      #expect(end.errors.contains("is gone") && end.errors.contains("is back"), "\(end.errors)")
      said += end.errors + end.output
      for file in ["keys.psk", "pki/client/client-key.pem"] {
        guard let secret = try? String(contentsOfFile: directory + "/" + file, encoding: .utf8) else { continue }
        for line in secret.split(separator: "\n").flatMap({ $0.split(separator: ":") }) where line.count > 30 {
          #expect(!said.contains(line), "a secret is logged")
        }
      }
    }
  }

  /// A sandboxed server without a disk of this kind, which may be allowed to get some.
  ///
  /// - Parameter act: receives the server's folder, with the socket `a.sock` of its only disk.
  private static func withServerOfAFile(_ more: [String], _ act: (String) throws -> Void) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let server = try Program(
        [
          "serve", "--blk-file", directory + "/disk", "--socket-path", directory + "/a.sock", "--control",
          directory + "/control", "--allow-nbd",
        ] + more)
      try #require(server.firstLine().hasPrefix("Serving "))
      try act(directory)
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  /// A disk with TLS is added to a sandboxed server that had none: the files it reads have to be allowed.
  @Test(.enabled(if: Certificates.canBeMade, "gnutls-bin is not installed"), arguments: [NBDDisk.Way.certificates, .keys])
  func aDiskThatIsAdded(way: NBDDisk.Way) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory, way)
      try Self.withServerOfAFile(["--allow-path", directory]) { other in
        let added = try Self.ctl(other, "add", "image=\(disk.uri)", "socket-path=\(other)/b.sock")
        #expect(added.status == 0, "\(added)")
        let transport = try VhostUserTransport(path: other + "/b.sock", memory: DriverMemory(size: 8 << 20))
        let client = try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
        let data = [UInt8](repeating: 0x5a, count: 4096)
        #expect(try client.queues[0].perform(.write(sector: 0, data)).status == .ok)
        #expect(try client.queues[0].perform(.flush).status == .ok)
        disk.kill()
        try disk.start()
        #expect(try client.queues[0].perform(.read(sector: 0, bytes: 4096)).answer == data)
        try client.shutDown()
        #expect(try Self.ctl(other, "flush", "b.sock").status == 0)
        #expect(try Self.ctl(other, "remove", "b.sock").status == 0)
      }
    }
  }

  /// The error names the sandbox if that denies access.
  @Test(.enabled(if: Certificates.canBeMade, "gnutls-bin is not installed"), arguments: [NBDDisk.Way.certificates, .keys])
  func aDiskThatIsForbidden(way: NBDDisk.Way) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory, way)
      try Self.withServerOfAFile([]) { other in
        guard try Self.ctl(other, "status").output.contains("files") else { return }
        let added = try Self.ctl(other, "add", "image=\(disk.uri)", "socket-path=\(other)/b.sock")
        #expect(added.status != 0)
        #expect(added.errors.contains("cannot be read") && added.errors.contains("--allow-path"), "\(added)")
      }
    }
  }

  /// The library hangs while it reads the trusted certificates, and nothing can interrupt it: a second request of the operator
  /// is refused at once, and no more threads are left behind.
  @Test(.enabled(if: Certificates.canBeMade && SilentFile.isPossible, SilentFile.needs)) func certificatesThatHang() throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory, .certificates)
      let place = directory + "/pki/client/ca-cert.pem"
      let trusted = try Data(contentsOf: URL(fileURLWithPath: place))
      let silent = try SilentFile(size: trusted.count)
      let file = try FileHandle(forWritingTo: URL(fileURLWithPath: silent.path))
      try file.write(contentsOf: trusted)
      try file.close()
      try FileManager.default.removeItem(atPath: place)
      try FileManager.default.createSymbolicLink(atPath: place, withDestinationPath: silent.path)
      // Without capabilities a process cannot reach that file.
      let server = try Self.serve(directory, disk, more: ["--sandbox", "off"])
      #expect(try Self.ctl(directory, "flush", "disk.sock").status == 0)
      try silent.hold("read")
      for _ in 0..<2 { #expect(try Self.ctl(directory, "flush", "disk.sock").status != 0) }
      let tasks = "/proc/\(server.process.processIdentifier)/task"
      let hanging = try FileManager.default.contentsOfDirectory(atPath: tasks).filter { thread in
        (try? String(contentsOfFile: "\(tasks)/\(thread)/comm", encoding: .utf8))?.hasPrefix("nbd connect") == true
      }
      #expect(hanging.count == 1, "\(hanging)")
      #expect(try Self.ctl(directory, "resize", "disk.sock").errors.contains("over TLS still hang"))
      silent.end()
      try FileManager.default.removeItem(atPath: place)
      try trusted.write(to: URL(fileURLWithPath: place))
      try wait(until: "it is flushed again") { try Self.ctl(directory, "flush", "disk.sock").status == 0 }
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  // MARK: Takeovers

  @Test(arguments: NBDDisk.Way.possible) func oneAfterTheOther(way: NBDDisk.Way) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory, way)
      var before = try Self.serve(directory, disk)
      let progress = try Self.underLoad(directory) { load in
        for _ in 1...3 {
          let after = try Program(Self.words(directory, disk.uri) + ["--take-over", directory + "/control"])
          try #require(after.firstLine().hasPrefix("Serving "))
          let end = before.finish()
          #expect(end.status == 0, "\(end.errors)")
          before = after
          try load.wait()
        }
      }
      #expect(progress.answered > 0)
      before.process.terminate()
      #expect(before.finish().status == 0)
    }
  }

  enum Refusal: String, CaseIterable, Sendable {
    case anotherExport, aFile, oneConnection

    var sentence: String {
      switch self {
      case .anotherExport, .aFile: "image"
      case .oneConnection: "CAN_MULTI_CONN"
      }
    }
  }

  /// It is refused before anything is stopped.
  @Test(arguments: Refusal.allCases) func whatCannotBeTakenOver(refusal: Refusal) throws {
    try withDirectory { directory in
      let filters = refusal == .oneConnection ? ["--filter=multi-conn", "multi-conn-mode=disable"] : []
      let disk = try NBDDisk(directory, filters: filters)
      let server = try Self.serve(directory, disk)
      let progress = try Self.underLoad(directory) { load in
        var words = Self.words(directory, disk.uri)
        switch refusal {
        case .anotherExport: words[2] = "nbd+unix:///other?socket=\(directory)/nbd"
        case .aFile: words[2] = "file:\(directory)/image"
        case .oneConnection: break
        }
        let end = try Program(words + ["--take-over", directory + "/control"]).finish()
        #expect(end.status != 0 && end.output.isEmpty)
        #expect(end.errors.contains(refusal.sentence), "\(end.errors)")
        try load.wait()
      }
      #expect(progress.answered > 0)
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0 && !end.errors.contains("stays here"), "\(end.errors)")
    }
  }

  /// The export has changed since the running server connected to it, and that server has not noticed yet.
  @Test func anExportThatTakesOneConnectionByNow() throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory)
      let server = try Self.serve(directory, disk)
      let usual = disk.filters
      disk.kill()
      disk.filters = ["--filter=multi-conn", "multi-conn-mode=disable"]
      try disk.start()
      let end = try Program(Self.words(directory, disk.uri) + ["--take-over", directory + "/control"]).finish()
      #expect(end.status != 0 && end.output.isEmpty)
      #expect(end.errors.contains("CAN_MULTI_CONN"), "\(end.errors)")
      disk.kill()
      disk.filters = usual
      try disk.start()
      let transport = try VhostUserTransport(path: directory + "/disk.sock", memory: DriverMemory(size: 8 << 20))
      let client = try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
      #expect(try client.queues[0].perform(.read(sector: 0, bytes: 512)).status == .ok, "it stayed with the old server")
      try client.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// A relative path means another socket in another folder, and that server's export may look the same.
  @Test func aRelativePathMeansASocket() throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory)
      func start(in folder: String, _ uri: String, _ more: [String]) throws -> Program {
        let words = ["-c", "cd \"$0\" && exec \"$@\"", folder, Program.path.path] + Self.words(directory, uri) + more
        return try Program(words, program: URL(fileURLWithPath: "/bin/sh"))
      }
      let relative = "nbd+unix:///?socket=nbd"
      let server = try start(in: directory, relative, ["--socket-path", directory + "/disk.sock"])
      try #require(server.firstLine().hasPrefix("Serving "))
      let taking = ["--take-over", directory + "/control"]
      let after = try withDirectory { folder in
        let other = try NBDDisk(folder)
        let refused = try start(in: folder, relative, taking).finish()
        #expect(refused.status != 0 && refused.errors.contains("\(other.directory)/nbd"), "\(refused.errors)")
        let after = try start(in: folder, disk.uri, taking)
        try #require(after.firstLine().hasPrefix("Serving "))
        return after
      }
      #expect(server.finish().status == 0)
      after.process.terminate()
      #expect(after.finish().status == 0)
    }
  }

  /// A server that went away may have lost what was not flushed, whichever process wrote it, and whichever noticed.
  @Test(arguments: [true, false]) func whatTheNextFlushSays(isLostBefore: Bool) throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory)
      let before = try Self.serve(directory, disk)
      let transport = try VhostUserTransport(path: directory + "/disk.sock", memory: DriverMemory(size: 8 << 20))
      let client = try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
      let queue = client.queues[0]
      func loseServer() throws {
        disk.kill()
        try disk.start()
        #expect(try queue.perform(.read(sector: 0, bytes: 512)).status == .ok)
      }
      #expect(try queue.perform(.write(sector: 0, [UInt8](repeating: 1, count: 4096))).status == .ok)
      if isLostBefore { try loseServer() }
      let after = try Program(Self.words(directory, disk.uri) + ["--take-over", directory + "/control"])
      try #require(after.firstLine().hasPrefix("Serving "))
      #expect(before.finish().status == 0)
      if !isLostBefore { try loseServer() }
      #expect(try queue.perform(.flush).status == .ioError)
      // A queue that was told is not told again by the next server, nor by the one after that.
      var last = after
      for _ in 0..<2 {
        let next = try Program(Self.words(directory, disk.uri) + ["--take-over", directory + "/control"])
        try #require(next.firstLine().hasPrefix("Serving "))
        #expect(last.finish().status == 0)
        last = next
        #expect(try queue.perform(.flush).status == .ok)
      }
      // What was stable before a takeover is not lost with the NBD server afterwards.
      try loseServer()
      #expect(try queue.perform(.flush).status == .ok)
      try client.shutDown()
      last.process.terminate()
      #expect(last.finish().status == 0)
    }
  }

  /// The old server goes on, without knowing what a server that took over and then died has acknowledged.
  @Test func aDeadTakerMayHaveWritten() throws {
    try withDirectory { directory in
      let disk = try NBDDisk(directory)
      let server = try Self.serve(directory, disk)
      let transport = try VhostUserTransport(path: directory + "/disk.sock", memory: DriverMemory(size: 8 << 20))
      let client = try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
      let queue = client.queues[0]
      for isCommitted in [false, true] {
        #expect(try queue.perform(.flush).status == .ok)
        let taker = try Taker(directory + "/control")
        for verb in ["take-over", "describe", "pause"] + (isCommitted ? ["commit"] : []) {
          #expect(try !taker.ask(verb, disk: directory + "/disk.sock").contains("\"error\""))
        }
        taker.close()
        #expect(try queue.perform(.flush).status == (isCommitted ? .ioError : .ok))
      }
      #expect(try queue.perform(.flush).status == .ok)
      try client.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }
}
