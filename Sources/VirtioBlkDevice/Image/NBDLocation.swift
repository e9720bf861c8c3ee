/// Where an export of a network block device (NBD) is: the URIs of the NBD project, as qemu-nbd, nbdkit and libnbd use them.

/// `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`; with `nbds` instead of `nbd`, over TLS.
public struct NBDLocation: Sendable, Hashable {
  /// Where a server listens.
  public enum Place: Sendable, Hashable {
    /// A UNIX socket, by its path in the file system.
    case unix(path: String)
    /// TCP: a host name or a numeric address, and a port.
    case internet(host: String, port: UInt16)
  }

  /// Where the server listens.
  public let place: Place
  /// Empty: the server's default export.
  public let export: String
  /// `nil`: the connection is not encrypted.
  public let security: NBDSecurity?
  /// The URI as it was given.
  public let text: String

  /// It is reached over TCP.
  public var isInternet: Bool { if case .internet = place { true } else { false } }
  /// A path in it depends on where the program was started.
  public var hasRelativePath: Bool {
    if case .unix(let path) = place, !path.hasPrefix("/") { return true }
    return security.map { !$0.path.hasPrefix("/") } ?? false
  }

  /// What identifies the disk, however it is connected to: without the parts that are only about TLS.
  public var identity: String {
    guard security != nil, let colon = text.firstIndex(of: ":") else { return text }
    let scheme = text[..<colon].lowercased() == "nbds" ? "nbd" : "nbd+unix"
    let parts = text[colon...].split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    let slash = parts[0].dropFirst(3).firstIndex(of: "/") ?? parts[0].endIndex
    let host = parts[0].dropFirst(3)[..<slash].split(separator: "@", omittingEmptySubsequences: false).last ?? ""
    let words = parts.count == 2 ? parts[1].split(separator: "&").filter { !$0.hasPrefix("tls-") } : []
    return "\(scheme)://\(host)\(parts[0][slash...])" + (words.isEmpty ? "" : "?" + words.joined(separator: "&"))
  }

  /// A URI of the export that every process understands in the same way, and that does not depend on how it is connected to:
  /// with the port and the socket's absolute path, and without TLS.
  ///
  /// - Parameter absolute: makes a path absolute.
  public func common(_ absolute: (String) -> String) -> String {
    func encoded(_ text: String) -> String { PercentText.encoded(text).replacing("#", with: "%23") }
    switch place {
    case .unix(let path): return "nbd+unix:///\(encoded(export))?socket=\(encoded(absolute(path)))"
    case .internet(let host, let port):
      return "nbd://\(host.contains(":") ? "[\(host)]" : encoded(host)):\(port)/\(encoded(export))"
    }
  }

  /// The default port of NBD.
  static let usualPort: UInt16 = 10809
  /// Bytes of an export's name (NBD protocol, "string").
  private static let longestName = 4096

  /// - Throws: what is wrong with the URI.
  public init(_ text: String) throws(NBDFailure) {
    func wrong(_ reason: String) -> NBDFailure { .badURI(text, reason) }
    guard let colon = text.firstIndex(of: ":") else { throw wrong("it has no scheme") }
    let scheme = text[..<colon].lowercased()
    var rest = text[text.index(after: colon)...]
    guard ["nbd", "nbd+unix", "nbds", "nbds+unix"].contains(scheme) else { throw wrong("its scheme is '\(scheme)'") }
    let (isUnix, isSecure) = (scheme.hasSuffix("+unix"), scheme.hasPrefix("nbds"))
    guard rest.hasPrefix("//") else { throw wrong("'//' has to follow '\(scheme):'") }
    rest = rest.dropFirst(2)
    guard !rest.contains("#") else { throw wrong("'#' has to be written as %23") }
    let parts = rest.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    var words = try Self.words(parts.count == 2 ? parts[1] : "", wrong)
    let slash = parts[0].firstIndex(of: "/") ?? parts[0].endIndex
    var authority = parts[0][..<slash]
    if isSecure, let at = authority.lastIndex(of: "@") {
      let user = try Self.value(authority[..<at], of: "the user", wrong)
      guard words.updateValue(user, forKey: .user) == nil else { throw wrong("the user is given twice") }
      authority = authority[authority.index(after: at)...]
    }
    guard let export = Self.decoded(parts[0][slash...].dropFirst()), export.utf8.count <= Self.longestName else {
      throw wrong("the export's name is not text of at most \(Self.longestName) bytes")
    }
    let socket = words.removeValue(forKey: .socket)
    if isUnix {
      guard authority.isEmpty else { throw wrong("with \(scheme), there is no host between '//' and the next '/'") }
      guard let socket else { throw wrong("it has no '?socket=PATH'") }
      place = .unix(path: socket)
    } else {
      guard socket == nil else { throw wrong("'socket' is only for nbd+unix and nbds+unix") }
      place = try Self.internet(authority, wrong)
    }
    if isSecure {
      security = try NBDSecurity(words, isUnix: isUnix, wrong)
    } else {
      if let word = words.keys.first { throw wrong("'\(word.rawValue)' is only for nbds and nbds+unix") }
      security = nil
    }
    self.export = export
    self.text = text
  }

  /// The parameters that can follow the `?`, by the library's names.
  enum Word: String {
    case socket
    case certificates = "tls-certificates"
    case keyFile = "tls-psk-file"
    case user = "tls-username"
    case hostName = "tls-hostname"
    case verifiesPeer = "tls-verify-peer"
  }

  private static func words(
    _ query: Substring, _ wrong: (String) -> NBDFailure
  ) throws(NBDFailure) -> [Word: String] {
    var words: [Word: String] = [:]
    for part in query.split(separator: "&") {
      let sides = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard let word = Word(rawValue: String(sides[0])) else {
        throw wrong("it has '\(sides[0])' after the '?', where only 'socket' and, with nbds, the tls-… words are known")
      }
      let text = try value(sides.count == 2 ? sides[1] : "", of: "'\(word.rawValue)'", wrong)
      guard words.updateValue(text, forKey: word) == nil else { throw wrong("'\(word.rawValue)' has to be given once") }
    }
    return words
  }

  private static func value(
    _ text: Substring, of what: String, _ wrong: (String) -> NBDFailure
  ) throws(NBDFailure) -> String {
    guard let value = decoded(text), !value.isEmpty else { throw wrong("\(what) has no value") }
    return value
  }

  private static func internet(_ authority: Substring, _ wrong: (String) -> NBDFailure) throws(NBDFailure) -> Place {
    guard !authority.contains("@") else { throw wrong("a user is only for nbds") }
    var host = authority
    var port: Substring?
    if authority.hasPrefix("["), let end = authority.firstIndex(of: "]") {
      host = authority[authority.index(after: authority.startIndex)..<end]
      let behind = authority[authority.index(after: end)...]
      guard behind.isEmpty || behind.hasPrefix(":") else { throw wrong("after ']' only a port can follow") }
      port = behind.isEmpty ? nil : behind.dropFirst()
    } else if let colon = authority.firstIndex(of: ":") {
      host = authority[..<colon]
      port = authority[authority.index(after: colon)...]
    }
    guard let name = decoded(host), !name.isEmpty else { throw wrong("it names no host") }
    guard let port, !port.isEmpty else { return .internet(host: name, port: usualPort) }
    guard let number = UInt16(port), number > 0 else { throw wrong("the port '\(port)' is not from 1 to 65535") }
    return .internet(host: name, port: number)
  }

  /// Decodes `%XX`; `nil` if the result is not text, or contains a NUL.
  private static func decoded(_ text: Substring) -> String? {
    var bytes: [UInt8] = []
    var rest = text.utf8[...]
    while let byte = rest.popFirst() {
      guard byte != 0 else { return nil }
      guard byte == UInt8(ascii: "%") else {
        bytes.append(byte)
        continue
      }
      let digits = rest.prefix(2)
      guard digits.count == 2, let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 16), value != 0 else {
        return nil
      }
      bytes.append(value)
      rest = rest.dropFirst(2)
    }
    return String(validating: bytes, as: UTF8.self)
  }
}
