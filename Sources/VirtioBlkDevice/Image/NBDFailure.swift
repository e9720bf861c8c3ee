/// Why an export of a network block device cannot be used: one sentence each, saying what to do.
internal import VirtioCore

/// Why an export cannot be used.
public enum NBDFailure: Error, Hashable, Sendable, CustomStringConvertible {
  /// - reason: the loader's.
  case noLibrary(String)
  /// The text, and why it is no URI of an export.
  case badURI(String, String)
  /// A socket's path is too long, or a host is not known.
  case noAddress(uri: String, String)
  /// Nothing listens there, or the handshake does not continue.
  case noAnswer(uri: String, String)
  /// Only who has not started to serve can look names up.
  case needsNumbers(uri: String)
  /// The server does not let it be written, and read-only was not asked for.
  case isReadOnly(uri: String)
  /// It has no bytes.
  case empty(uri: String)
  /// The server takes requests only in multiples of more than a logical block; bytes.
  case needsLargerBlocks(uri: String, minimum: UInt64, blockSize: Int)
  /// Its size is no multiple of the logical block size; bytes.
  case oddSize(uri: String, size: UInt64, blockSize: Int)
  /// After reconnecting it is another disk. - difference: as in "it has 5 bytes instead of 6".
  case changed(uri: String, difference: String)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .noLibrary(let reason):
      "NBD needs libnbd, which is not available here (\(printable(reason))): install the package libnbd0"
    case .badURI(let uri, let reason):
      "\(printable(uri)) is no URI of an NBD export, because \(printable(reason)): write nbd://HOST[:PORT]/EXPORT or "
        + "nbd+unix:///EXPORT?socket=PATH"
    case .noAddress(let uri, let reason): "\(printable(uri)) leads nowhere: \(printable(reason))"
    case .noAnswer(let uri, let reason):
      "the NBD server of \(printable(uri)) does not answer (\(printable(reason))): start it, or look whether it has this export and "
        + "takes one more connection"
    case .needsNumbers(let uri):
      "\(printable(uri)) names its host, and a server that has its sandbox cannot look names up: give the host's address in numbers"
    case .isReadOnly(let uri): "the server lets \(printable(uri)) be read only: serve it with --read-only"
    case .empty(let uri): "\(printable(uri)) has size 0: give it one at its server"
    case .needsLargerBlocks(let uri, let minimum, let blockSize):
      minimum <= 65536 && minimum & (minimum &- 1) == 0
        ? "the server of \(printable(uri)) takes requests in multiples of \(minimum) bytes, but the logical block size is "
          + "\(blockSize): use --logical-block-size \(minimum)"
        : "the server of \(printable(uri)) takes requests in multiples of \(minimum) bytes, which no disk here has as its block: "
          + "let the server take smaller ones"
    case .oddSize(let uri, let size, let blockSize):
      "\(printable(uri)) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): make it longer at its "
        + "server, or let the server round its size"
    case .changed(let uri, let difference):
      "\(printable(uri)) is another disk than before: \(printable(difference)); it is not used until it is as it was"
    }
  }
}
