/// `vmm-blk run` again and again on one memory file, a guest that works meanwhile, and somebody who only says that it takes over.
import CLinux
import Foundation
import Glibc
import MemoryFile
import Synchronization
import Testing
import VirtioCore

@testable import GuestDriver
@testable import Sockets

/// `vmm-blk` in a process of its own, which does not outlive its test.
final class RunProgram: Sendable {
  let process = Process()
  private let output = Pipe()
  private let errors = Pipe()

  init(_ arguments: [String]) throws {
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = errors
    try process.run()
  }

  deinit { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }

  /// The line that says that it serves; empty when it ends before.
  func firstLine() -> String {
    var line: [UInt8] = []
    while let byte = output.fileHandleForReading.readData(ofLength: 1).first, byte != UInt8(ascii: "\n") {
      line.append(byte)
    }
    return String(decoding: line, as: UTF8.self)
  }

  /// Waits for the end. What it says is short enough for the pipes to hold.
  func finish() -> (status: Int32, output: String, errors: String) {
    process.waitUntilExit()
    func text(_ pipe: Pipe) -> String {
      String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    }
    return (process.terminationStatus, text(output), text(errors))
  }
}

/// A memory file, an image and a control socket in a folder of their own.
final class TakeoverRig: Sendable {
  let directory: TemporaryDirectory
  var memory: String { directory.file("guest.mem") }
  var disk: String { directory.file("disk.img") }
  /// As the process that serves it calls it.
  var name: String { memory.replacingOccurrences(of: "//", with: "/") }
  var control: String { directory.file("control") }

  init() throws {
    directory = try TemporaryDirectory()
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: disk))
  }

  /// The first of all.
  func serve(engine: String, queues: Int = 2) throws -> RunProgram {
    let words = ["--memory", memory, "--create", "16M", "--num-queues", "\(queues)"]
    let first = try RunProgram(["run", "--blk-file", disk, "--engine", engine, "--control", control] + words)
    try #require(first.firstLine().hasPrefix("Serving "), "\(first.finish().errors)")
    return first
  }

  func taker(engine: String, _ more: [String] = []) throws -> RunProgram {
    try RunProgram(
      ["run", "--take-over", control, "--control", control, "--blk-file", disk, "--engine", engine] + more)
  }

  /// Replaces one by the next.
  func replace(_ before: RunProgram, engine: String) throws -> RunProgram {
    let after = try taker(engine: engine)
    try #require(after.firstLine().hasPrefix("Serving "), "\(after.finish().errors)")
    let end = before.finish()
    #expect(end.status == 0, "\(end.errors)")
    #expect(end.errors.contains("everything is served by another process"))
    return after
  }

  func terminate(_ last: RunProgram) {
    last.process.terminate()
    let end = last.finish()
    #expect(end.status == 0, "\(end.errors)")
    #expect(!FileManager.default.fileExists(atPath: control))
  }

  /// A guest that works, and checks every byte, for as long as something is done to its device, and for some answers more.
  ///
  /// - Parameter act: is given a function that returns when the guest has got some more answers.
  func underLoad(_ act: @escaping @Sendable (_ guestWorks: () throws -> Void) throws -> Void) throws {
    let client = try BlockClient(
      try MemoryFileTransport(path: memory), options: DriverOptions(features: BlockFeature.understood, queueSize: 64))
    client.depth = 12
    var weights = VerifyOptions.Weights()
    (weights.flush, weights.discard, weights.writeZeroes) = (6, 8, 12)
    var verifier = try Verifier(
      client, VerifyOptions(seed: 11, range: 0..<4 << 20, limit: .bytes(.max), largest: 32 << 10, weights: weights))
    let load = Load()
    verifier.whenAnswered = { load.answered.store($0, ordering: .relaxed) }
    var left = 200
    verifier.goesOn = {
      if load.outcome.withLock({ $0 }) != nil { left -= 1 }
      return left > 0
    }
    Thread.detachNewThread {
      let result = Result { try act { try load.wait() } }
      load.outcome.withLock { $0 = result }
    }
    defer { load.isOver.store(true, ordering: .relaxed) }
    _ = try verifier.run()
    try client.shutDown()
    try load.outcome.withLock { $0 }?.get()
  }
}

/// What a guest and whoever does something to its device know of each other.
private final class Load: Sendable {
  let answered = Atomic<Int>(0)
  let isOver = Atomic<Bool>(false)
  let outcome = Mutex<Result<Void, any Error>?>(nil)

  /// Until the guest has got some more answers, those to requests of before this call among them.
  func wait() throws {
    let before = answered.load(ordering: .relaxed)
    try waitPatiently(until: "the guest is answered") {
      answered.load(ordering: .relaxed) >= before + 20 || isOver.load(ordering: .relaxed)
    }
    let hasEnded = isOver.load(ordering: .relaxed)
    try #require(!hasEnded, "the guest has ended")
  }
}

/// Looks again and again.
func waitPatiently(until what: String, _ isSo: () throws -> Bool) throws {
  let end = ContinuousClock.now + Patience.limit
  while try !isSo() {
    try #require(ContinuousClock.now < end, "\(what): never")
    usleep(1000)
  }
}

/// Says lines on a control socket, and lets go of every descriptor that comes back.
final class TalkingTaker: Sendable {
  private let socket: Mutex<OwnedDescriptor?>

  init(_ path: String) throws { socket = Mutex(try UnixSocket.connect(to: path)) }

  func close() { socket.withLock { $0 = nil } }

  /// - Returns: the answer; `nil` when the connection ended.
  func ask(_ verb: String, disk: String) throws -> String? {
    let number = try #require(socket.withLock { $0?.rawValue })
    let bytes = Array((#"{"request":"\#(verb)","version":1,"disk":"\#(disk)"}"# + "\n").utf8)
    guard unsafe clinux_send_with_fds(number, bytes, bytes.count, nil, 0) == bytes.count else { return nil }
    var line: [UInt8] = []
    while true {
      var entry = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
      try #require(unsafe poll(&entry, 1, Int32(patientMilliseconds)) == 1, "no answer on the control socket")
      var byte: UInt8 = 0
      // A plain read lets the kernel close what descriptors came.
      let count = unsafe Glibc.read(number, &byte, 1)
      if count < 0, errno == EAGAIN || errno == EINTR { continue }
      guard count == 1 else { return nil }
      if byte == UInt8(ascii: "\n") { return String(decoding: line, as: UTF8.self) }
      line.append(byte)
    }
  }
}
