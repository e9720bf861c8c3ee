/// NBD servers for as long as a test needs them, each on a UNIX socket of its own.
import CLinux
import Foundation
import Glibc
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

extension Host {
  /// libnbd and nbdkit are installed.
  static let hasNBD: Bool = NBDSupport.load() == nil && run("nbdkit", "--version") != nil
  static let hasQemuNBD: Bool = NBDSupport.load() == nil && run("qemu-nbd", "--version") != nil
}

/// Whether somebody takes connections there: as the kernel says it, because a look by a connection could be the only one that
/// a server takes.
func isListening(_ path: String) -> Bool {
  guard let table = try? String(contentsOfFile: "/proc/net/unix", encoding: .utf8) else { return false }
  // The fourth word has the flag of a socket that accepts.
  return table.split(separator: "\n").contains { line in
    let words = line.split(separator: " ")
    return words.count == 8 && words[3] == "00010000" && words[7] == path
  }
}

/// nbdkit ends with the thread that started it, so that one has to last.
private enum LastingThread {
  /// One for all tests, which never ends.
  private static let queue: LastingQueue = LastingQueue()

  /// - Parameter body: it may be released a moment after this has returned.
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
  /// What the server is told; `SOCKET` stands for its socket, `DIR` for a folder of its own.
  var words: [String]
  private var child: ChildProgram?

  /// - Parameter words: of nbdkit, from the plugin on, or with filters before it.
  init(_ words: [String], starts: Bool = true) throws {
    scratch = try Scratch()
    socket = scratch.path + "/nbd"
    self.words = ["nbdkit", "--foreground", "--unix", "SOCKET"] + words
    if starts { try start() }
  }

  /// qemu-nbd on a raw file.
  init(qemu more: [String], size: Int) throws {
    scratch = try Scratch()
    socket = scratch.path + "/nbd"
    let image = try scratch.image(size: size)
    words = ["qemu-nbd", "--persistent", "--format", "raw", "--socket", "SOCKET"] + more + [image]
    try start()
  }

  var location: NBDLocation {
    get throws { try NBDLocation("nbd+unix:///?socket=\(socket)") }
  }

  func options(timeout: Int = NBDOptions.usualReconnectTimeout, keepsWrites: Bool = false) throws -> NBDOptions {
    var options = NBDOptions(try location)
    (options.reconnectTimeout, options.keepsWrites) = (timeout, keepsWrites)
    return options
  }

  func start() throws {
    // A server that was killed leaves it.
    _ = unsafe unlink(socket)
    let words = words.map {
      $0.replacingOccurrences(of: "SOCKET", with: socket).replacingOccurrences(of: "DIR", with: scratch.path)
    }
    let child = try LastingThread.run { try ChildProgram(["/usr/bin/env"] + words) }
    self.child = child
    try waitUntil("the server listens: \(child.output)") { isListening(socket) }
  }

  func send(_ signal: Int32) { child?.send(signal) }

  func kill() {
    _ = child?.end(SIGKILL)
    child = nil
  }

  deinit { kill() }
}
