/// A server that agrees to TLS and then says nothing, however long the client waits.
import Foundation
import Glibc
import Synchronization
import Testing

final class SilentNBDServer: Sendable {
  private let listener: Int32
  private let state = Mutex(State())
  private let threads = DispatchGroup()

  private struct State {
    var isOver = false
    var open: Set<Int32> = []
    var count = 0
    var waiting: Set<Int> = []
  }

  /// - Parameter port: a port on the loopback address.
  init(port: UInt16) throws {
    listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var (address, one) = (sockaddr_in(), Int32(1))
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    address.sin_port = port.bigEndian
    unsafe setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, 4)
    let listener = listener
    let result = unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe bind(listener, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    try #require(result == 0 && listen(listener, 64) == 0)
    start { [self] in
      while true {
        let socket = Glibc.accept(listener, nil, nil)
        let isOver = state.withLock { state in
          if socket >= 0 { state.open.insert(socket) }
          return state.isOver
        }
        if isOver { shutdown(socket, Int32(SHUT_RDWR)) }
        guard socket >= 0 else { if isOver { return } else { continue } }
        start { [self] in
          converse(socket)
          state.withLock { _ = $0.open.remove(socket) }
          close(socket)
        }
      }
    }
  }

  /// TLS handshakes that were begun and whose clients are still there, each with its own number.
  var waiting: Set<Int> { state.withLock { $0.waiting } }

  func end() {
    state.withLock { state in
      state.isOver = true
      for socket in state.open { shutdown(socket, Int32(SHUT_RDWR)) }
    }
    shutdown(listener, Int32(SHUT_RDWR))
    threads.wait()
    close(listener)
  }

  private func start(_ body: @escaping @Sendable () -> Void) {
    threads.enter()
    Thread.detachNewThread { [self] in
      body()
      threads.leave()
    }
  }

  private func converse(_ socket: Int32) {
    guard send(socket, Array("NBDMAGICIHAVEOPT".utf8) + [0, 3]), receive(socket, 4) != nil else { return }
    while true {
      // IHAVEOPT, the option and how many bytes it has: all options of this client are small, and STARTTLS is the fifth.
      guard let option = receive(socket, 16), receive(socket, Int(option[15])) != nil else { return }
      let magic: [UInt8] = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]
      guard send(socket, magic + option[8..<12] + [0, 0, 0, 1, 0, 0, 0, 0]) else { return }
      if option[11] == 5 { break }
    }
    guard receive(socket, 1) != nil else { return }
    let number = state.withLock { state in
      state.count += 1
      state.waiting.insert(state.count)
      return state.count
    }
    while receive(socket, 1) != nil {}
    state.withLock { _ = $0.waiting.remove(number) }
  }

  private func send(_ socket: Int32, _ bytes: [UInt8]) -> Bool {
    unsafe bytes.withUnsafeBytes { unsafe Glibc.send(socket, $0.baseAddress!, bytes.count, Int32(MSG_NOSIGNAL)) } == bytes.count
  }

  private func receive(_ socket: Int32, _ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    guard count > 0 else { return bytes }
    let result = unsafe bytes.withUnsafeMutableBytes {
      unsafe recv(socket, $0.baseAddress!, count, Int32(MSG_WAITALL))
    }
    return result == count ? bytes : nil
  }
}
