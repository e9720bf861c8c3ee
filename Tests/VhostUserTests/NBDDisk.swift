/// An export of a real NBD server; the data survives the server.
import CLinux
import Foundation
import Glibc
import TestSupport
import Testing

final class NBDDisk {
  static let canBeServed = FileManager.default.isExecutableFile(atPath: "/usr/bin/nbdkit")

  /// How it listens, and what it requires of clients.
  enum Way: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case socket, port, certificates, keys
    var testDescription: String { rawValue }

    static let possible = allCases.filter { Certificates.canBeMade || $0 == .socket || $0 == .port }
  }

  let directory: String
  private let way: Way
  /// Filters for nbdkit, before its plugin, from the next start on.
  var filters: [String]
  private let port: UInt16
  private var server: Program?

  /// - Parameters:
  ///   - directory: the folder of image, socket, certificates and keys.
  ///   - filters: the first filters.
  init(_ directory: String, _ way: Way = .socket, filters: [String] = []) throws {
    (self.directory, self.way, self.filters) = (directory, way, filters)
    port = way == .socket ? 0 : try freePort()
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
    try wait(until: "nbdkit listens") { way == .socket ? isListening(directory + "/nbd") : isListening(port: port) }
  }

  func kill() {
    guard let server else { return }
    Glibc.kill(server.process.processIdentifier, SIGKILL)
    server.process.waitUntilExit()
  }

  deinit { kill() }
}
