/// Certificates and keys for a test's servers and clients, made with GnuTLS's tools.
internal import Foundation

public final class Certificates: Sendable {
  /// `certtool` and `psktool` are installed.
  public static let canBeMade = ["certtool", "psktool"].allSatisfy {
    FileManager.default.isExecutableFile(atPath: "/usr/bin/" + $0)
  }

  /// A holder of a certificate.
  public struct Holder: Sendable {
    /// Also the name of its folder.
    public var name: String
    public var isServer: Bool
    /// As in `ip_address = "127.0.0.1"`.
    public var names: [String]
    public var hasExpired: Bool

    public init(_ name: String, isServer: Bool, names: [String] = [], hasExpired: Bool = false) {
      (self.name, self.isServer, self.names, self.hasExpired) = (name, isServer, names, hasExpired)
    }

    public static let server = Holder(
      "server", isServer: true, names: ["ip_address = \"127.0.0.1\"", "dns_name = \"localhost\""])
    public static let client = Holder("client", isServer: false)
  }

  private let folder: String

  /// - Parameter folder: is created; only its owner may read it.
  public init(in folder: String) throws {
    self.folder = folder
    try FileManager.default.createDirectory(
      atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    try makeKey("ca-key.pem")
    try write("ca.info", "cn = \"test\"\nca\ncert_signing_key\nexpiration_days = 10\n")
    try run(
      "certtool", "--generate-self-signed", "--load-privkey", "ca-key.pem", "--template", "ca.info", "--outfile",
      "ca-cert.pem")
  }

  /// Creates a folder with a holder's certificate and key, and the authority that it trusts.
  @discardableResult
  public func issue(_ holder: Holder) throws -> String {
    let own = folder + "/" + holder.name
    try FileManager.default.createDirectory(atPath: own, withIntermediateDirectories: true)
    let role = holder.isServer ? "server" : "client"
    let dates =
      holder.hasExpired
      ? "activation_date = \"2020-01-01 00:00:00\"\nexpiration_date = \"2021-01-01 00:00:00\"\n" : "expiration_days = 10\n"
    try write(
      "\(holder.name)/info",
      "cn = \"\(holder.name)\"\n\(holder.names.joined(separator: "\n"))\ntls_www_\(role)\nencryption_key\nsigning_key\n" + dates
    )
    try makeKey("\(holder.name)/\(role)-key.pem")
    try run(
      "certtool", "--generate-certificate", "--load-ca-certificate", "ca-cert.pem", "--load-ca-privkey", "ca-key.pem",
      "--load-privkey", "\(holder.name)/\(role)-key.pem", "--template", "\(holder.name)/info", "--outfile",
      "\(holder.name)/\(role)-cert.pem")
    try FileManager.default.copyItem(atPath: folder + "/ca-cert.pem", toPath: own + "/ca-cert.pem")
    return own
  }

  /// Creates a file with a key for each of these users.
  public static func makeKeys(_ path: String, users: String...) throws {
    for user in users { try run("psktool", "-u", user, "-p", path) }
  }

  private func makeKey(_ name: String) throws {
    try run("certtool", "--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1", "--outfile", name)
  }

  private func write(_ name: String, _ text: String) throws {
    try Data(text.utf8).write(to: URL(fileURLWithPath: folder + "/" + name))
  }

  private func run(_ words: String...) throws { try Self.run(words, in: folder) }
  private static func run(_ words: String...) throws { try run(words, in: "/") }

  private static func run(_ words: [String], in folder: String) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/" + words[0])
    process.arguments = Array(words.dropFirst())
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw CertificateFailure(words: words) }
  }
}

public struct CertificateFailure: Error {
  public let words: [String]
}
