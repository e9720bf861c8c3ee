/// One exit status for each kind of failure, numbered as in sysexits.h where that has one.
internal import SystemPackage

package enum ExitStatus: Int32, CaseIterable {
  case success = 0
  /// A disk, a queue or a result is wrong.
  case failure = 1
  /// The driver's fault, not the device's.
  case driver = 3
  case usage = 64
  case image = 66
  case unavailable = 69
  case io = 74
  case leftBehind = 75

  /// Its meaning, for --help.
  private var meaning: String {
    switch self {
    case .success: "success; also after SIGTERM and Ctrl-C end a server"
    case .failure: "a disk, a queue or a result is wrong"
    case .driver: "a watched driver (--check-driver) broke a MUST of the specification"
    case .usage: "the command line or a description is invalid"
    case .image: "an image or a file is missing or cannot be used"
    case .unavailable: "a server, a socket, an engine or a resource is unavailable"
    case .io: "the system reported an error"
    case .leftBehind: "a server ended before all queues did"
    }
  }

  /// A table with a line for each status.
  package static let help = allCases.map { status in
    let number = "\(status.rawValue)"
    return String(repeating: " ", count: 6 - number.count) + number + "  " + status.meaning
  }.joined(separator: "\n")

  /// - Parameter error: what a command ended with; not one that asks for help or that carries an exit code.
  package init(_ error: any Error) {
    switch error {
    case let error as any ErrorWithStatus: self = error.status
    case is Errno: self = .io
    default: self = .usage
    }
  }
}

/// An error that knows its exit status.
package protocol ErrorWithStatus: Error {
  var status: ExitStatus { get }
}

extension ServeDiskListError: ErrorWithStatus {
  package var status: ExitStatus {
    switch self {
    case .cannotRead: .image
    case .notJSON, .noDisks: .usage
    case .entry(_, _, _, _, let status): status
    }
  }
}
