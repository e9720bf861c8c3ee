/// Where metrics can be fetched.
internal import VirtioCore

/// A UNIX socket, or an address and a port of this machine.
public enum MetricsAddress: Hashable, Sendable, CustomStringConvertible {
  case path(String)
  /// - host: a numeric address.
  case internet(host: String, port: UInt16)

  /// `9100` (on the loopback address alone), `127.0.0.1:9100`, `[::1]:9100`, or a path with a slash in it.
  public init?(_ text: String) {
    if text.contains("/") {
      self = .path(text)
      return
    }
    if let port = UInt16(text), port > 0 {
      self = .internet(host: "127.0.0.1", port: port)
      return
    }
    guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]), port > 0 else {
      return nil
    }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") {
      host = host.dropFirst().dropLast()
      guard host.contains(":") else { return nil }
    } else if host.contains(":") {
      return nil
    }
    guard !host.isEmpty, host.utf8.allSatisfy({ $0 == 46 || $0 == 58 || (48...57).contains($0) || (97...102).contains($0) })
    else {
      return nil
    }
    self = .internet(host: String(host), port: port)
  }

  /// The accepted forms, for messages.
  public static let forms =
    "a port, as in 9100, an address with a port, as in 127.0.0.1:9100 or [::1]:9100, or a path with a slash"

  public var description: String {
    switch self {
    case .path(let path): path
    case .internet(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
  }
}
