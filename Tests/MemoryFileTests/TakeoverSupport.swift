/// `vmm-blk run` again and again with one memory file, while a guest works.
import Foundation
import GuestDriver
import TestSupport
import Testing

/// A memory file, an image and a control socket in their own folder.
final class TakeoverRig: Sendable {
  let directory: TemporaryDirectory
  var memory: String { directory.file("guest.mem") }
  var disk: String { directory.file("disk.img") }
  var control: String { directory.file("control") }

  init() throws {
    directory = try TemporaryDirectory()
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: disk))
  }

  /// Starts the first server.
  func serve(engine: String, queues: Int = 2, registers: String = "mmio", _ more: [String] = []) throws -> Program {
    let words = ["--memory", memory, "--create", "16M", "--num-queues", "\(queues)", "--registers", registers]
    let first = try Program(["run", "--blk-file", disk, "--engine", engine, "--control", control] + words + more)
    try #require(first.firstLine().hasPrefix("Serving "), "\(first.finish().errors)")
    return first
  }

  func taker(engine: String, _ more: [String] = []) throws -> Program {
    let words = ["run", "--take-over", control, "--control", control, "--blk-file", disk, "--engine", engine]
    return try Program(Program.words(words, overriddenBy: more))
  }

  /// Replaces a server by the next one.
  func replace(_ before: Program, engine: String) throws -> Program {
    let after = try taker(engine: engine)
    try #require(after.firstLine().hasPrefix("Serving "), "\(after.finish().errors)")
    let end = before.finish()
    #expect(end.status == 0, "\(end.errors)")
    #expect(end.errors.contains("everything is served by another process"))
    return after
  }

  func terminate(_ last: Program) {
    last.process.terminate()
    let end = last.finish()
    #expect(end.status == 0, "\(end.errors)")
    #expect(!FileManager.default.fileExists(atPath: control))
  }

  /// Runs a guest's workload while something is done to its device.
  ///
  /// - Parameter act: receives a function that returns when the guest has received some more answers.
  func underLoad(_ act: (_ guestWorks: () throws -> Void) throws -> Void) throws {
    try Load.run { [memory] in
      try BlockClient(
        MemoryFileTransport(path: memory), options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
    } during: { load in
      try act { try load.wait() }
    }
  }
}
