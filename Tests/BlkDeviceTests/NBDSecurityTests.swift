/// NBD over TLS: which servers are trusted, which are not, and that a reconnection is as safe as the first connection.
import CLinux
import Foundation
import GuestDriver
import SystemPackage
import TestSupport
import Testing
import VirtioCore

@testable import VirtioBlkDevice

extension Host {
  static let hasTLS: Bool = hasNBD && Certificates.canBeMade
  /// The library can verify a name other than the one it connects to.
  static let verifiesNames: Bool = (try? NBDLibrary.find()).map { unsafe $0.functions.pointee.set_tls_hostname != nil } ?? false
}

@Suite(.serialized, .enabled(if: Host.hasTLS, "nbdkit, libnbd or gnutls-bin is not installed")) struct NBDSecurityTests {
  /// How both ends are configured.
  enum Way: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case certificates, certificatesOfBoth, keys, keysOverSocket, nobodyVerified
    case qemuCertificates, qemuKeys
    var testDescription: String { rawValue }

    var isQemu: Bool { self == .qemuCertificates || self == .qemuKeys }
    var hasKeys: Bool { self == .keys || self == .keysOverSocket || self == .qemuKeys }
    var hasPort: Bool { self != .keysOverSocket && self != .nobodyVerified }
  }

  /// A server whose data is in its folder, and survives it. - Parameter holder: whose certificate the server has.
  private static func server(
    _ way: Way, as holder: Certificates.Holder = .server, trusting other: String? = nil
  ) throws -> NBDServer {
    let server = try NBDServer(program: [], port: way.hasPort ? try freePort() : nil)
    _ = try server.scratch.image(size: 16 << 20)
    let folder = server.scratch.path
    let place = way.hasPort ? ["--ipaddr", "127.0.0.1", "--port", "PORT"] : ["--unix", "SOCKET"]
    let disk = ["file", "DIR/disk"]
    if way.hasKeys {
      try Certificates.makeKeys(folder + "/keys.psk", users: "alice", "bob")
      server.security = "tls-psk-file=\(folder)/keys.psk&tls-username=alice"
    } else {
      let certificates = try Certificates(in: folder + "/pki")
      try certificates.issue(holder)
      try certificates.issue(.client)
      server.security = "tls-certificates=\(folder)/pki/client"
      if way == .nobodyVerified { server.security? += "&tls-verify-peer=false" }
    }
    switch way {
    case .qemuCertificates, .qemuKeys:
      let credentials =
        way == .qemuKeys
        ? "tls-creds-psk,id=tls,endpoint=server,dir=\(folder)"
        : "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir=\(folder)/pki/\(holder.name)"
      server.words = [
        "qemu-nbd", "--persistent", "--shared", "4", "--format", "raw", "--bind", "127.0.0.1", "--port", "PORT", "--object",
        credentials, "--tls-creds", "tls", "DIR/disk",
      ]
    case .keys, .keysOverSocket:
      server.words = ["nbdkit", "--foreground", "--tls=require", "--tls-psk", "DIR/keys.psk"] + place + disk
    case .certificates, .certificatesOfBoth, .nobodyVerified:
      server.words =
        ["nbdkit", "--foreground", "--tls=require", "--tls-certificates", "DIR/pki/\(holder.name)"]
        + (way == .certificatesOfBoth ? ["--tls-verify-peer"] : []) + place + disk
    }
    return server
  }

  private static func opened(_ server: NBDServer) throws -> ImageFile {
    var options = ImageOptions(path: "")
    options.nbd = try server.options()
    return try ImageFile(options)
  }

  private static func rig(_ server: NBDServer, timeout: Int = 120, queues: Int = 1) throws -> Rig {
    var options = RigOptions()
    options.nbd = try server.options(timeout: timeout, keepsWrites: true)
    options.device.queueCount = queues
    return try Rig(options)
  }

  // MARK: What is served

  @Test(arguments: Way.allCases.filter { !$0.isQemu || Host.hasQemuNBD }) func everyAcknowledgedWriteIsThere(way: Way) throws {
    let server = try Self.server(way)
    try server.start()
    let rig = try Self.rig(server, queues: 2)
    rig.client.depth = 16
    var verifier = try Verifier(rig.client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(2 << 20), cuts: .all))
    _ = try verifier.run()
    #expect(rig.device.counters.failures == 0)
  }

  @Test(arguments: [Way.certificatesOfBoth, .keysOverSocket]) func killedUnderVerifiedLoad(way: Way) throws {
    let server = try Self.server(way)
    try server.start()
    let rig = try Self.rig(server, queues: 2)
    try rig.verifyThroughKills(3, after: 10_000...60_000, for: 0...30_000, kill: server.kill, start: server.start)
    #expect(rig.device.counters.failures == 0)
  }

  /// The certificate has to be for the host's name, if the library can check that.
  @Test func aServerByItsName() throws {
    let server = try Self.server(.certificates)
    try server.start()
    let uri = try server.location.text.replacingOccurrences(of: "127.0.0.1", with: "localhost")
    var options = ImageOptions(path: "")
    options.nbd = NBDOptions(try NBDLocation(uri))
    if Host.verifiesNames {
      _ = try ImageFile(options)
    } else {
      #expect { try ImageFile(options) } throws: { "\($0)".contains("before 1.22") && "\($0)".contains("numeric address") }
    }
  }

  // MARK: What is refused

  enum Fault: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case serverWithoutTLS, clientWithoutTLS, foreignAuthority, expired, forAnotherHost, noCertificateOfClient
    case otherKey, unknownUser, noAuthority, noKeys, authorityIsAPipe, keyIsAFolder
    var testDescription: String { rawValue }

    var sentence: String {
      switch self {
      case .serverWithoutTLS: "has no TLS"
      case .clientWithoutTLS: "write nbds"
      case .foreignAuthority, .expired, .forAnotherHost: "check that its certificate is valid now"
      case .noCertificateOfClient: "requires a client certificate"
      case .otherKey, .unknownUser: "has the key of"
      case .noAuthority: "ca-cert.pem, which cannot be read"
      case .noKeys: "keys.psk, which cannot be read"
      case .authorityIsAPipe: "ca-cert.pem, which is not a regular file"
      case .keyIsAFolder: "client-key.pem, which cannot be read"
      }
    }
  }

  @Test(arguments: Fault.allCases) func whoIsNotBelieved(fault: Fault) throws {
    let usesKeys = [.otherKey, .unknownUser, .noKeys].contains(fault)
    var holder = Certificates.Holder.server
    if fault == .expired { holder.hasExpired = true }
    if fault == .forAnotherHost { holder.names = ["ip_address = \"127.0.0.2\"", "dns_name = \"elsewhere\""] }
    let server = try Self.server(
      usesKeys ? .keys : fault == .noCertificateOfClient ? .certificatesOfBoth : .certificates, as: holder)
    let folder = server.scratch.path
    switch fault {
    case .serverWithoutTLS: server.words.removeAll { $0 == "--tls=require" }
    case .clientWithoutTLS: server.security = nil
    case .foreignAuthority:
      let other = try Certificates(in: folder + "/other").issue(.client)
      server.security = "tls-certificates=\(other)"
    case .expired, .forAnotherHost: break
    case .noCertificateOfClient: try FileManager.default.removeItem(atPath: folder + "/pki/client/client-cert.pem")
    case .otherKey:
      try Certificates.makeKeys(folder + "/others.psk", users: "alice")
      server.security = "tls-psk-file=\(folder)/others.psk&tls-username=alice"
    case .unknownUser: server.security = "tls-psk-file=\(folder)/keys.psk&tls-username=carol"
    case .noAuthority: try FileManager.default.removeItem(atPath: folder + "/pki/client/ca-cert.pem")
    case .noKeys: server.security = "tls-psk-file=\(folder)/none/keys.psk&tls-username=alice"
    case .authorityIsAPipe:
      let path = folder + "/pki/client/ca-cert.pem"
      try FileManager.default.removeItem(atPath: path)
      try #require(unsafe mkfifo(path, 0o600) == 0)
    case .keyIsAFolder:
      let path = folder + "/pki/client/client-key.pem"
      try FileManager.default.removeItem(atPath: path)
      try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
    }
    if fault == .serverWithoutTLS { server.words.insert("--tls=off", at: 2) }
    try server.start()
    #expect { try Self.opened(server) } throws: { error in
      let words = "\(error)"
      return words.contains(fault.sentence) && !words.contains("\n")
    }
  }

  enum Meddling: String, CaseIterable, Sendable { case nothing, gone, movedAndBack, folderMovedAndBack }

  /// A file that was checked may have changed or disappeared by the time the library reads it.
  @Test(arguments: Meddling.allCases) func credentialsThatChangeMeanwhile(meddling: Meddling) throws {
    let server = try Self.server(.certificates)
    try server.start()
    let location = try server.location
    let address = try #require(try NBDAddress.all(of: location, isConfined: false).first)
    let connection = try NBDConnection(try NBDLibrary.find(), location)
    let folder = server.scratch.path + "/pki/client"
    let file = folder + "/ca-cert.pem"
    func move(_ one: String, _ other: String) throws { try FileManager.default.moveItem(atPath: one, toPath: other) }
    switch meddling {
    case .nothing: break
    case .gone: try move(file, folder + ".pem")
    case .movedAndBack:
      try move(file, folder + ".pem")
      try move(folder + ".pem", file)
    case .folderMovedAndBack:
      try move(folder, folder + ".old")
      try move(folder + ".old", folder)
    }
    var failure: NBDFailure?
    do throws(NBDFailure) { try connection.connect(address, until: Clock.now &+ NBDExport.connectTimeout) } catch {
      failure = error
    }
    switch meddling {
    case .nothing: #expect(failure == nil)
    case .gone: #expect(failure != nil)
    case .movedAndBack, .folderMovedAndBack:
      #expect(failure == .credentialsChanged(uri: location.text, path: folder))
    }
  }

  /// The TLS library keeps some memory for each thread that used it, so one thread makes all connections of a queue.
  @Test func oneThreadMakesAllConnections() throws {
    let server = try Self.server(.certificates)
    try server.start()
    let rig = try Self.rig(server)
    try rig.expect(.write(sector: 0, pattern(4096)))
    var threads: Set<String> = []
    for _ in 0..<5 {
      try rig.lose(server)
      threads.formUnion(try Self.connectors())
    }
    #expect(threads.count == 1, "\(threads)")
  }

  /// Threads of this process that make connections: only this suite makes some over TLS.
  private static func connectors() throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: "/proc/self/task").filter { thread in
      let name = try? String(contentsOfFile: "/proc/self/task/\(thread)/comm", encoding: .utf8)
      return name?.hasPrefix(NBDAttempt.threadName) == true
    }
  }

  /// An impostor that takes the absent server's place gets nothing; the user is told once, and requests go on when the server
  /// is back.
  @Test(arguments: [false, true]) func anImpostorGetsNothing(isTrustGone: Bool) throws {
    let server = try Self.server(.certificates)
    try server.start()
    let rig = try Self.rig(server, timeout: 1, queues: 2)
    try rig.expect(.write(sector: 0, pattern(4096)))
    try rig.expect(.flush)
    #expect(try rig.perform(.read(sector: 0, bytes: 4096), queue: 1).status == .ok)
    server.kill()
    let (words, folder) = (server.words, server.scratch.path)
    let (kept, taken) = (folder + "/pki/client/ca-cert.pem", folder + "/ca-cert.pem")
    if isTrustGone {
      // Without the file the library would trust any server.
      try FileManager.default.moveItem(atPath: kept, toPath: taken)
    } else {
      let other = try Certificates(in: folder + "/other").issue(.server)
      server.words = words.map { $0 == "DIR/pki/server" ? other : $0 }
    }
    try server.start()
    for queue in 0..<2 { #expect(try rig.perform(.read(sector: 0, bytes: 4096), queue: queue).status == .ioError) }
    let said = rig.device.takeEvents().compactMap { if case .notice(let text) = $0 { text } else { nil } }
    let sentence = isTrustGone ? "which cannot be read" : "check that its certificate"
    #expect(said.count { $0.contains(sentence) } == 1, "\(said)")
    if isTrustGone { try FileManager.default.moveItem(atPath: taken, toPath: kept) }
    server.kill()
    server.words = words
    try server.start()
    try rig.expectServedAgain()
  }

  /// A hanging attempt is abandoned, but only a limited number of times: here attempts hang because no thread runs them.
  @Test func attemptsThatHangAreBounded() throws {
    let (library, location) = (try NBDLibrary.find(), try NBDLocation("nbds://127.0.0.1:1/?tls-certificates=/none"))
    let address = try #require(try NBDAddress.all(of: location, isConfined: false).first)
    let limit = NBDAttemptLimit(2)
    var attempts: [NBDAttempt] = []
    func connect() -> NBDFailure? {
      do throws(NBDFailure) {
        _ = try limit.connection(uri: "it", until: Clock.now) { () throws(Errno) in
          attempts.append(try NBDAttempt(library, location, address))
          return attempts[attempts.count - 1]
        }
        return nil
      } catch { return error }
    }
    for _ in 0..<2 { #expect(connect() == .noAnswer(uri: "it", NBDConnection.lateness)) }
    #expect(connect() == .othersHang(uri: "it", count: 2))
    #expect(attempts.count == 2)
    attempts[0].run()
    #expect(connect() == .noAnswer(uri: "it", NBDConnection.lateness))
    #expect(connect() == .othersHang(uri: "it", count: 2))
    for attempt in attempts { attempt.run() }
  }

  /// The library waits 40 seconds for a peer that falls silent in a handshake; neither the queue nor its stop does.
  @Test func whoFallsSilentHoldsNobodyUp() throws {
    let server = try Self.server(.certificates)
    try server.start()
    let rig = try Self.rig(server, timeout: 0)
    try rig.expect(.write(sector: 0, pattern(4096)))
    server.kill()
    let silent = try SilentNBDServer(port: #require(server.port))
    try waitUntil("an answer comes while a handshake is waited for") {
      guard let handshake = silent.waiting.first else { return false }
      return try rig.perform(.read(sector: 0, bytes: 4096)).status == .ioError && silent.waiting.contains(handshake)
    }
    silent.end()
    try server.start()
    try rig.expectServedAgain()
  }
}
