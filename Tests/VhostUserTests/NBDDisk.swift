/// An export of a real NBD server, which its disk survives.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing

final class NBDDisk {
  static let canBeServed = FileManager.default.isExecutableFile(atPath: "/usr/bin/nbdkit")

  /// Where it listens, and what it asks of clients.
  enum Way: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case socket, port, certificates, keys
    var testDescription: String { rawValue }

    static let possible = allCases.filter { Certificates.canBeMade || $0 == .socket || $0 == .port }
  }

  let directory: String
  private let way: Way
  private let filters: [String]
  private let port: UInt16
  private var server: Program?

  /// - Parameters:
  ///   - directory: where image, socket, certificates and keys are.
  ///   - filters: words for nbdkit in front of its plugin.
  init(_ directory: String, _ way: Way = .socket, filters: [String] = []) throws {
    (self.directory, self.way, self.filters) = (directory, way, filters)
    port = way == .socket ? 0 : try Self.freePort()
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: directory + "/image"))
    switch way {
    case .socket, .port: break
    case .certificates:
      let certificates = try Certificates(in: directory + "/pki")
      for holder in [Certificates.Holder.server, .client] { try certificates.issue(holder) }
    case .keys: try Certificates.makeKeys(directory + "/keys.psk", users: "alice")
    }
    try start()
  }

  var uri: String {
    switch way {
    case .socket: "nbd+unix:///?socket=\(directory)/nbd"
    case .port: "nbd://127.0.0.1:\(port)/"
    case .certificates: "nbds://127.0.0.1:\(port)/?tls-certificates=\(directory)/pki/client"
    case .keys: "nbds://alice@127.0.0.1:\(port)/?tls-psk-file=\(directory)/keys.psk"
    }
  }

  private var words: [String] {
    let place = way == .socket ? ["--unix", directory + "/nbd"] : ["--ipaddr", "127.0.0.1", "--port", "\(port)"]
    switch way {
    case .socket, .port: return place
    case .certificates: return place + ["--tls=require", "--tls-verify-peer", "--tls-certificates", directory + "/pki/server"]
    case .keys: return place + ["--tls=require", "--tls-psk", directory + "/keys.psk"]
    }
  }

  func start() throws {
    try? FileManager.default.removeItem(atPath: directory + "/nbd")
    server = try Program(
      ["--foreground"] + words + filters.filter { $0.hasPrefix("--") } + ["file", directory + "/image"]
        + filters.filter { !$0.hasPrefix("--") },
      program: URL(fileURLWithPath: "/usr/bin/nbdkit"))
    try wait(until: "nbdkit listens") { try way == .socket ? isListeningOnSocket() : isListeningOnPort() }
  }

  private func isListeningOnSocket() throws -> Bool {
    let table = try String(contentsOfFile: "/proc/net/unix", encoding: .utf8)
    // The flag of a socket that accepts.
    return table.split(separator: "\n").contains { $0.contains(" 00010000 ") && $0.hasSuffix(" \(directory)/nbd") }
  }

  private func isListeningOnPort() throws -> Bool {
    let digits = String(Int(port), radix: 16, uppercase: true)
    let address = "0100007F:" + String(repeating: "0", count: 4 - digits.count) + digits
    // The state of one that accepts.
    return try String(contentsOfFile: "/proc/net/tcp", encoding: .utf8).contains(" \(address) 00000000:0000 0A ")
  }

  private static func freePort() throws -> UInt16 {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let isBound = unsafe withUnsafeMutablePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe bind(descriptor, $0, length) == 0 && getsockname(descriptor, $0, &length) == 0
      }
    }
    try #require(isBound)
    return UInt16(bigEndian: address.sin_port)
  }

  func kill() {
    guard let server else { return }
    Glibc.kill(server.process.processIdentifier, SIGKILL)
    server.process.waitUntilExit()
  }

  deinit { kill() }
}
