/// Why a takeover failed.
internal import Control
internal import OperatorWords
internal import VhostUser
internal import VirtioCore

/// Why a server cannot be taken over: one sentence.
enum TakeoverFailure: Error, CustomStringConvertible {
  case silent(String)
  case refused(String, String)
  case control(String, ControlError)
  case version(String, Int)
  case transport(String, String)
  case disk(String, String)
  case otherDisks(String)

  var description: String {
    switch self {
    case .silent(let path): "the server at \(printable(path)) does not answer; it continues as before"
    case .refused(let path, let reason): "the server at \(printable(path)) refuses: \(printable(reason))"
    case .control(let path, let error): "taking over from the server at \(printable(path)) failed: \(error)"
    case .version(let path, let version):
      "the server at \(printable(path)) speaks version \(version) of the takeover protocol, and this program version \(Takeover.version)"
    case .transport(let path, let transport):
      "the server at \(printable(path)) " + Self.serves(transport)
    case .disk(let disk, let reason): "\(printable(disk)) cannot be taken over: \(printable(reason))"
    case .otherDisks(let sentence): sentence
    }
  }

  private static func serves(_ transport: String) -> String {
    switch Takeover.Transport(rawValue: transport) {
    case .vhostUser: "serves on vhost-user sockets: take them over with 'vmm-blk serve'"
    case .memoryFile: "serves a memory file: take it over with 'vmm-blk run'"
    case nil: "serves on a transport that this program does not know: \(printable(transport))"
    }
  }
}

extension TakeoverFailure: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .otherDisks: .usage
    default: .unavailable
    }
  }
}

extension TakeoverError: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}

extension ControlError: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}
