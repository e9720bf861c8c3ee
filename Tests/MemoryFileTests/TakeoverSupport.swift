/// `vmm-blk run` again and again on one memory file, and a guest that works in the meantime.
import Foundation
import GuestDriver
import TestSupport
import Testing

/// A memory file, an image and a control socket in a folder of their own.
final class TakeoverRig: Sendable {
  let directory: TemporaryDirectory
  var memory: String { directory.file("guest.mem") }
  var disk: String { directory.file("disk.img") }
  var control: String { directory.file("control") }

  init() throws {
    directory = try TemporaryDirectory()
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: disk))
  }

  /// The first of all.
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

  /// Replaces one by the next.
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

  /// A guest that works for as long as something is done to its device.
  ///
  /// - Parameter act: is given a function that returns when the guest has got some more answers.
  func underLoad(_ act: (_ guestWorks: () throws -> Void) throws -> Void) throws {
    try Load.run { [memory] in
      try BlockClient(
        MemoryFileTransport(path: memory), options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
    } during: { load in
      try act { try load.wait() }
    }
  }
}
