/// Why an export of a network block device cannot be used: one sentence each that says what to do.
public import SystemPackage
internal import VirtioCore

/// Why an export cannot be used.
public enum NBDFailure: Error, Hashable, Sendable, CustomStringConvertible {
  /// libnbd cannot be loaded. - reason: what the loader says.
  case noLibrary(String)
  /// The text, and why it is not the URI of an export.
  case badURI(String, String)
  /// A socket's path is too long, or a host is not known.
  case noAddress(uri: String, String)
  /// Nothing listens there, or the handshake does not continue.
  case noAnswer(uri: String, String)
  /// The library was built without TLS.
  case noTLS(uri: String)
  /// The library verifies only the address that it connects to.
  case cannotVerifyNames(uri: String, name: String)
  /// A certificate or a file with keys cannot be read, or is not a regular file.
  case noCredentials(uri: String, path: String, Errno)
  /// Too many attempts over TLS that nobody waits for any more have not ended, so another one is not made.
  case othersHang(uri: String, count: Int)
  /// Certificates or keys were changed while a connection was made.
  case credentialsChanged(uri: String, path: String)
  /// The server accepts no connection without TLS.
  case needsTLS(uri: String)
  case serverHasNoTLS(uri: String, String)
  /// One of the two ends does not trust the other.
  case notTrusted(uri: String, NBDSecurity, String)
  case noExport(uri: String, name: String)
  /// A server that has started to serve cannot look up names.
  case needsNumbers(uri: String)
  /// The server does not allow writes, and read-only was not requested.
  case isReadOnly(uri: String)
  /// It has no bytes.
  case empty(uri: String)
  /// The server accepts requests only in multiples of more than a logical block; bytes.
  case needsLargerBlocks(uri: String, minimum: UInt64, blockSize: Int)
  /// Its size is not a multiple of the logical block size; bytes.
  case oddSize(uri: String, size: UInt64, blockSize: Int)
  /// After a reconnection it is a different disk. - difference: as in "it has 5 bytes instead of 6".
  case changed(uri: String, difference: String)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .noLibrary(let reason):
      "NBD needs libnbd, which is not available here (\(printable(reason))): install the package libnbd0"
    case .badURI(let uri, let reason):
      "\(printable(uri)) is not the URI of an NBD export, because \(printable(reason)): write nbd://HOST[:PORT]/EXPORT or "
        + "nbd+unix:///EXPORT?socket=PATH, with nbds for TLS"
    case .noAddress(let uri, let reason): "\(printable(uri)) cannot be reached: \(printable(reason)); correct it"
    case .noAnswer(let uri, let reason):
      "the NBD server of \(printable(uri)) does not answer (\(printable(reason))): start it, or check that it has this export and "
        + "accepts another connection"
    case .noExport(let uri, let name):
      "the server of \(printable(uri)) has no export named '\(printable(name))': name another ('nbdinfo --list' shows them), or let it "
        + "serve this one"
    case .noTLS(let uri): "\(printable(uri)) needs TLS, and libnbd was built without it here: install one that has it"
    case .cannotVerifyNames(let uri, let name):
      "libnbd before 1.22 checks the certificate of the server of \(printable(uri)) only against the address that it connects to, "
        + "not against '\(printable(name))': use the numeric address, which the certificate has to contain, or install a newer libnbd"
    case .noCredentials(let uri, let path, .invalidArgument):
      "\(printable(uri)) needs \(printable(path)), which is not a regular file: put one there"
    case .noCredentials(let uri, let path, let error):
      "\(printable(uri)) needs \(printable(path)), which cannot be read (\(error)): put it there, or let this user read it"
    case .othersHang(let uri, let count):
      "\(printable(uri)) is not connected to, because \(count == 1 ? "an earlier attempt" : "\(count) earlier attempts") over TLS still "
        + "\(count == 1 ? "hangs" : "hang"): check that the file system with the certificates or keys responds, and try again"
    case .credentialsChanged(let uri, let path):
      "\(printable(path)) changed while a connection to \(printable(uri)) was being made, so that connection is not used: try again"
    case .needsTLS(let uri): "the server of \(printable(uri)) accepts no connection without TLS: write nbds instead of nbd"
    case .serverHasNoTLS(let uri, let reason):
      "the server of \(printable(uri)) has no TLS (\(printable(reason))): give it certificates or keys, or write nbd instead of nbds"
    case .notTrusted(let uri, let security, let reason):
      switch security.credentials {
      case .certificates(let folder, _, _):
        "TLS with the server of \(printable(uri)) fails (\(printable(reason))): check that its certificate is valid now, for this "
          + "name, and signed by \(printable(folder))/ca-cert.pem, and whether it requires a client certificate"
      case .key(let file, let user):
        "TLS with the server of \(printable(uri)) fails (\(printable(reason))): check that it has the key of "
          + "'\(printable(user))' that is in \(printable(file))"
      }
    case .needsNumbers(let uri):
      "\(printable(uri)) names its host, and a server in its sandbox cannot look up names: use the host's numeric address"
    case .isReadOnly(let uri): "the server exports \(printable(uri)) read-only: serve it with --read-only"
    case .empty(let uri): "\(printable(uri)) has size 0: give it one at its server"
    case .needsLargerBlocks(let uri, let minimum, let blockSize):
      minimum <= 65536 && minimum & (minimum &- 1) == 0
        ? "the server of \(printable(uri)) takes requests in multiples of \(minimum) bytes, but the logical block size is "
          + "\(blockSize): use --logical-block-size \(minimum)"
        : "the server of \(printable(uri)) takes requests in multiples of \(minimum) bytes, which is larger than any block of a disk here: "
          + "let the server accept smaller ones"
    case .oddSize(let uri, let size, let blockSize):
      "\(printable(uri)) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): make it longer at its "
        + "server, or let the server round its size"
    case .changed(let uri, let difference):
      "\(printable(uri)) is not the disk that it was: \(printable(difference)); it is not used until it is the same again"
    }
  }
}

extension NBDFailure {
  /// A connection was not made. - Parameter reason: in the library's words.
  static func notConnected(_ location: NBDLocation, _ reason: String) -> NBDFailure {
    let (uri, words) = (location.text, withoutNames(reason, location))
    func says(_ phrases: String...) -> Bool { phrases.contains { words.contains($0) } }
    if says("handshake: server has no export named") { return .noExport(uri: uri, name: location.export) }
    guard let security = location.security else {
      return says("handshake: server requires TLS encryption first") ? .needsTLS(uri: uri) : .noAnswer(uri: uri, reason)
    }
    if says("but handle TLS setting is 'require'") { return .serverHasNoTLS(uri: uri, reason) }
    return says(" gnutls_", "was not found in PSK file") ? .notTrusted(uri: uri, security, reason) : .noAnswer(uri: uri, reason)
  }

  /// The library's own words, without the names of files, which may contain anything.
  private static func withoutNames(_ reason: String, _ location: NBDLocation) -> String {
    var names = location.security?.places ?? []
    if case .unix(let path) = location.place { names.append(path) }
    var words = reason
    // Long ones first, because a folder's name is part of those of its files.
    for name in names.sorted(by: { $0.utf8.count > $1.utf8.count }) where name.contains("/") {
      words = words.split(separator: name, omittingEmptySubsequences: false).joined(separator: "/")
    }
    return words.split(separator: " ").map { $0.contains("/") ? "/" : $0 }.joined(separator: " ")
  }

  /// Waiting will not change it: somebody has to act.
  var isOfTrust: Bool {
    switch self {
    case .noCredentials, .needsTLS, .serverHasNoTLS, .notTrusted: true
    default: false
    }
  }
}
