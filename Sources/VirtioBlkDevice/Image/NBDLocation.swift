/// Where an export of a network block device (NBD) is: the URIs of the NBD project, as qemu-nbd, nbdkit and libnbd have them.

/// `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`.
public struct NBDLocation: Sendable, Hashable {
  /// Where a server listens.
  public enum Place: Sendable, Hashable {
    /// A UNIX socket. The path is as the system has it.
    case unix(path: String)
    /// TCP: a name or an address in numbers, and a port.
    case internet(host: String, port: UInt16)
  }

  /// Where the server listens.
  public let place: Place
  /// Empty: the server's default export.
  public let export: String
  /// The URI as it was given.
  public let text: String

  /// It is reached over TCP.
  public var isInternet: Bool { if case .internet = place { true } else { false } }
  /// Its socket's path depends on where the program was started.
  public var hasRelativePath: Bool { if case .unix(let path) = place { !path.hasPrefix("/") } else { false } }

  /// The port of NBD.
  static let usualPort: UInt16 = 10809
  /// Bytes of an export's name (NBD protocol, "string").
  private static let longestName = 4096

  /// - Throws: what is wrong with the URI.
  public init(_ text: String) throws(NBDFailure) {
    func wrong(_ reason: String) -> NBDFailure { .badURI(text, reason) }
    guard let colon = text.firstIndex(of: ":") else { throw wrong("it has no scheme") }
    let scheme = text[..<colon].lowercased()
    var rest = text[text.index(after: colon)...]
    guard scheme == "nbd" || scheme == "nbd+unix" else {
      if scheme == "nbds" || scheme == "nbds+unix" {
        throw wrong(
          "TLS is not in this build, so use nbd:// or nbd+unix:// through a tunnel, or a local nbdkit or qemu-nbd that has it")
      }
      throw wrong("its scheme is '\(scheme)'")
    }
    guard rest.hasPrefix("//") else { throw wrong("'//' has to follow '\(scheme):'") }
    rest = rest.dropFirst(2)
    guard !rest.contains("#") else { throw wrong("'#' has to be written as %23") }
    let parts = rest.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    let query = parts.count == 2 ? parts[1] : ""
    let slash = parts[0].firstIndex(of: "/") ?? parts[0].endIndex
    let authority = parts[0][..<slash]
    guard let export = Self.decoded(parts[0][slash...].dropFirst()), export.utf8.count <= Self.longestName else {
      throw wrong("the export's name is no text of at most \(Self.longestName) bytes")
    }
    let socket = try Self.socket(query, wrong)
    if scheme == "nbd+unix" {
      guard authority.isEmpty else { throw wrong("between '//' and the next '/' there is no host with nbd+unix") }
      guard let socket, !socket.isEmpty else { throw wrong("it has no '?socket=PATH'") }
      place = .unix(path: socket)
    } else {
      guard socket == nil else { throw wrong("'socket' is for nbd+unix") }
      place = try Self.internet(authority, wrong)
    }
    self.export = export
    self.text = text
  }

  private static func socket(_ query: Substring, _ wrong: (String) -> NBDFailure) throws(NBDFailure) -> String? {
    var socket: String?
    for word in query.split(separator: "&") {
      let sides = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides[0] == "socket" else { throw wrong("it has '\(sides[0])' behind the '?', where only 'socket' is known") }
      guard sides.count == 2, socket == nil, let path = decoded(sides[1]) else {
        throw wrong("'socket' has to be there once, with a path")
      }
      socket = path
    }
    return socket
  }

  private static func internet(_ authority: Substring, _ wrong: (String) -> NBDFailure) throws(NBDFailure) -> Place {
    guard !authority.contains("@") else { throw wrong("a user is of no use without TLS") }
    var host = authority
    var port: Substring?
    if authority.hasPrefix("["), let end = authority.firstIndex(of: "]") {
      host = authority[authority.index(after: authority.startIndex)..<end]
      let behind = authority[authority.index(after: end)...]
      guard behind.isEmpty || behind.hasPrefix(":") else { throw wrong("behind ']' only a port can follow") }
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

  /// Text behind `%XX`; `nil` where it is none, or has a NUL in it.
  private static func decoded(_ text: Substring) -> String? {
    var bytes: [UInt8] = []
    var rest = text.utf8[...]
    while let byte = rest.popFirst() {
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
