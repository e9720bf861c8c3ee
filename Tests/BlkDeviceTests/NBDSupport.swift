/// NBD servers that run for as long as a test needs them, each on its own UNIX socket.
import CLinux
import Foundation
import Glibc
import GuestDriver
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import VirtioBlkDevice

extension Host {
  /// libnbd and nbdkit are installed.
  static let hasNBD: Bool = NBDSupport.load() == nil && run("nbdkit", "--version") != nil
  static let hasQemuNBD: Bool = NBDSupport.load() == nil && run("qemu-nbd", "--version") != nil
}

/// nbdkit ends with the thread that started it, so that thread has to last.
private enum LastingThread {
  /// One for all tests. It never ends.
  private static let queue: LastingQueue = LastingQueue()

  /// - Parameter body: may be released a moment after this has returned.
  static func run<Value>(_ body: @escaping () throws -> Value) throws -> Value {
    nonisolated(unsafe) let body = body
    nonisolated(unsafe) var result: Result<Value, any Error>?
    let isDone = DispatchSemaphore(value: 0)
    queue.add {
      unsafe result = Result { try unsafe body() }
      isDone.signal()
    }
    isDone.wait()
    guard let result = unsafe result else { preconditionFailure("it was run") }
    return try result.get()
  }

  private final class LastingQueue: Sendable {
    private let errands = Mutex<[@Sendable () -> Void]>([])
    private let available = DispatchSemaphore(value: 0)

    init() {
      Thread.detachNewThread { [self] in
        while true {
          available.wait()
          let errand = errands.withLock { $0.removeFirst() }
          errand()
        }
      }
    }

    func add(_ errand: @escaping @Sendable () -> Void) {
      errands.withLock { $0.append(errand) }
      available.signal()
    }
  }
}

/// `nbdkit`, or another server, that can be killed and started again.
final class NBDServer {
  let scratch: Scratch
  let socket: String
  /// Used instead of the socket.
  var port: UInt16?
  /// The query part of its URIs, with TLS.
  var security: String?
  /// The server's command line; `SOCKET` stands for its socket, `PORT` for its port, `DIR` for its own folder.
  var words: [String]
  private var child: ChildProgram?

  /// - Parameter words: nbdkit's arguments, from the plugin on, or with filters before it.
  init(_ words: [String], starts: Bool = true) throws {
    scratch = try Scratch()
    socket = scratch.path + "/nbd"
    self.words = ["nbdkit", "--foreground", "--unix", "SOCKET"] + words
    if starts { try start() }
  }

  /// Another program, or one with a port. It is not started yet.
  init(program words: [String], port: UInt16? = nil) throws {
    scratch = try Scratch()
    socket = scratch.path + "/nbd"
    (self.words, self.port) = (words, port)
  }

  /// qemu-nbd with a raw file.
  init(qemu more: [String], size: Int) throws {
    scratch = try Scratch()
    socket = scratch.path + "/nbd"
    let image = try scratch.image(size: size)
    words = ["qemu-nbd", "--persistent", "--format", "raw", "--socket", "SOCKET"] + more + [image]
    try start()
  }

  var location: NBDLocation {
    get throws {
      let words = (security.map { [$0] } ?? []) + (port == nil ? ["socket=\(socket)"] : [])
      let scheme = (security == nil ? "nbd" : "nbds") + (port == nil ? "+unix" : "")
      let query = words.isEmpty ? "" : "?" + words.joined(separator: "&")
      return try NBDLocation("\(scheme)://\(port.map { "127.0.0.1:\($0)" } ?? "")/\(query)")
    }
  }

  func options(timeout: Int = NBDOptions.usualReconnectTimeout, keepsWrites: Bool = false) throws -> NBDOptions {
    var options = NBDOptions(try location)
    (options.reconnectTimeout, options.keepsWrites) = (timeout, keepsWrites)
    return options
  }

  func start() throws {
    // A killed server leaves its socket behind.
    _ = unsafe unlink(socket)
    let words = words.map {
      $0.replacingOccurrences(of: "SOCKET", with: socket).replacingOccurrences(of: "DIR", with: scratch.path)
        .replacingOccurrences(of: "PORT", with: "\(port ?? 0)")
    }
    let child = try LastingThread.run { try ChildProgram(["/usr/bin/env"] + words) }
    self.child = child
    try waitUntil("the server listens: \(child.output)") { port.map { isListening(port: $0) } ?? isListening(socket) }
  }

  func send(_ signal: Int32) { child?.send(signal) }

  func kill() {
    _ = child?.end(SIGKILL)
    child = nil
  }

  deinit { kill() }
}

extension Rig {
  /// Its server is killed and restarted, and its first queues notice that: a lost connection is noticed when it is used, at the
  /// latest.
  func lose(_ server: NBDServer, queues: Int = 1) throws {
    server.kill()
    try server.start()
    for queue in 0..<queues { #expect(try perform(.read(sector: 0, bytes: 512), queue: queue).status == .ok) }
  }

  /// Whether the next FLUSH of a queue reports that something may be lost; the one after it has nothing to report.
  func expectFlush(fails: Bool, queue: Int = 0, _ place: SourceLocation = #_sourceLocation) throws {
    #expect(try perform(.flush, queue: queue).status == (fails ? .ioError : .ok), "queue \(queue)", sourceLocation: place)
    #expect(try perform(.flush, queue: queue).status == .ok, "queue \(queue)", sourceLocation: place)
  }

  /// The right server is back, with what was written to the first 4 KiB, `pattern(4096)`.
  func expectServedAgain(_ place: SourceLocation = #_sourceLocation) throws {
    try waitUntil("it is served again") { try perform(.read(sector: 0, bytes: 4096)).status == .ok }
    let outcome = try expect(.read(sector: 0, bytes: 4096), .ok, "", place)
    #expect(firstDifference(outcome.answer, pattern(4096)) == nil, sourceLocation: place)
  }
}
